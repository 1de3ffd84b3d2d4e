{{- /* The alerts that are on, as a YAML list, with the values in their places. */ -}}
{{- define "rlhf-operator.alerts" -}}
{{- $known := (.Files.Get "files/alerts.yaml" | fromYaml).alerts }}
{{- $names := list }}
{{- $found := list }}
{{- range $known }}
{{- $names = append $names .name }}
{{- $path := printf "prometheusRule.alerts.%s" .name }}
{{- $given := index $.Values.prometheusRule.alerts .name | default dict }}
{{- if and (not .hasThreshold) (not (kindIs "invalid" $given.threshold)) }}
{{- fail (printf "%s.threshold is set, but this alert has none; remove it" $path) }}
{{- end }}
{{- $expr := .expr }}
{{- $threshold := $given.threshold }}
{{- if kindIs "invalid" $threshold }}
{{- $threshold = .defaults.threshold }}
{{- else if and .thresholdExpr (ne (toJson $threshold) (toJson .defaults.threshold)) }}
{{- $expr = .thresholdExpr }}
{{- end }}
{{- $expr = $expr | replace "$namespace" $.Release.Namespace }}
{{- if not (kindIs "invalid" $threshold) }}
{{- $expr = $expr | replace "$threshold" (toJson $threshold) | replace "$seconds" (printf "%ds" (int64 $threshold)) }}
{{- end }}
{{- $page := printf "%s#%s" $.Values.prometheusRule.runbookBaseUrl (lower .name) }}
{{- $rule := dict "alert" .name "expr" $expr "for" ($given.for | default .defaults.for) }}
{{- $_ := set $rule "labels" (dict "severity" ($given.severity | default .defaults.severity)) }}
{{- $_ := set $rule "annotations" (merge (dict "runbook_url" ($given.runbookUrl | default $page)) .annotations) }}
{{- if dig "enabled" true $given }}
{{- $found = append $found $rule }}
{{- end }}
{{- end }}
{{- range $name, $_ := .Values.prometheusRule.alerts }}
{{- if not (has $name $names) }}
{{- fail (printf "prometheusRule.alerts.%s: there is no such alert; those are %s" $name (join ", " $names)) }}
{{- end }}
{{- end }}
{{- toYaml $found }}
{{- end }}
