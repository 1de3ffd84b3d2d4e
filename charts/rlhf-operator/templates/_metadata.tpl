{{- /* All that names and marks objects. Written by toYaml, which quotes what YAML would not read as a text: a namespace
may be called 123, and a release 1e3. */ -}}

{{- /* A name of at most so many characters, which ends in a hash of the whole one where it is cut: list name length. */ -}}
{{- define "rlhf-operator.cut" -}}
{{- $name := index . 0 }}
{{- $length := index . 1 }}
{{- if gt (len $name) $length -}}
{{ $name | trunc (sub $length 9 | int) | trimSuffix "-" }}-{{ sha256sum $name | trunc 8 }}
{{- else -}}
{{ $name }}
{{- end -}}
{{- end }}

{{- define "rlhf-operator.fullname" -}}
{{- $name := .Release.Name }}
{{- if not (contains .Chart.Name $name) }}
{{- $name = printf "%s-%s" $name .Chart.Name }}
{{- end -}}
{{ include "rlhf-operator.cut" (list $name 63) }}
{{- end }}

{{- /* A Service's name is no longer than 63. */ -}}
{{- define "rlhf-operator.serviceName" -}}
{{ include "rlhf-operator.cut" (list (include "rlhf-operator.fullname" .) 55) }}-metrics
{{- end }}

{{- define "rlhf-operator.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (include "rlhf-operator.fullname" .) }}
{{- end }}

{{- define "rlhf-operator.selector" -}}
{{ toYaml (dict "app.kubernetes.io/name" .Chart.Name "app.kubernetes.io/instance" .Release.Name) }}
{{- end }}

{{- /* The labels of what connects to the operator for `helm test`. Not the operator's own. */ -}}
{{- define "rlhf-operator.testLabels" -}}
{{ toYaml (dict "app.kubernetes.io/name" (printf "%s-test" .Chart.Name) "app.kubernetes.io/instance" .Release.Name) }}
{{- end }}

{{- /* One map of several; what stands in a later one wins, even an empty text. */ -}}
{{- define "rlhf-operator.united" -}}
{{- $all := dict }}
{{- range . }}
{{- range $key, $value := . }}
{{- $_ := set $all $key $value }}
{{- end }}
{{- end }}
{{- toYaml $all }}
{{- end }}

{{- /* Metadata of an object: root, name, namespace unless it is cluster-wide, and labels and annotations of its own. */ -}}
{{- define "rlhf-operator.metadata" -}}
{{- $root := .root }}
{{- $chart := printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- $ours := dict "app.kubernetes.io/version" $root.Chart.AppVersion "app.kubernetes.io/managed-by" $root.Release.Service "helm.sh/chart" $chart }}
{{- $selector := include "rlhf-operator.selector" $root | fromYaml }}
{{- $metadata := dict "name" .name }}
{{- with .namespace }}
{{- $_ := set $metadata "namespace" . }}
{{- end }}
{{- $_ := set $metadata "labels" (include "rlhf-operator.united" (list $root.Values.commonLabels $selector $ours .labels) | fromYaml) }}
{{- with include "rlhf-operator.united" (list $root.Values.commonAnnotations .annotations) | fromYaml }}
{{- $_ := set $metadata "annotations" . }}
{{- end }}
{{- toYaml $metadata }}
{{- end }}
