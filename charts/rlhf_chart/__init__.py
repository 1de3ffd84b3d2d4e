"""What of the Helm chart and of the pages about it is made from the code."""
