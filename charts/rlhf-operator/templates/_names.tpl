{{- define "rlhf-operator.image" -}}
{{- with .Values.image.digest -}}
{{ printf "%s@%s" $.Values.image.repository . | quote }}
{{- else -}}
{{ printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) | quote }}
{{- end -}}
{{- end }}

{{- /* A duration of Prometheus in milliseconds. */ -}}
{{- define "rlhf-operator.milliseconds" -}}
{{- $day := 86400000 }}
{{- $units := dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000 "d" $day "w" (mul 7 $day) "y" (mul 365 $day) }}
{{- $sum := 0 }}
{{- range regexFindAll "[0-9]+[a-z]+" . -1 }}
{{- $sum = add $sum (mul (regexFind "[0-9]+" . | atoi) (get $units (regexFind "[a-z]+" .))) }}
{{- end }}
{{- $sum }}
{{- end }}

{{- /* A quantity of Kubernetes as a number. */ -}}
{{- define "rlhf-operator.amount" -}}
{{- $number := regexFind "^[0-9.]+([eE][-+]?[0-9]+)?" (toString .) }}
{{- $units := dict "" 1.0 "n" 1e-9 "u" 1e-6 "m" 1e-3 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "E" 1e18 }}
{{- range $n, $unit := list "Ki" "Mi" "Gi" "Ti" "Pi" "Ei" }}
{{- $size := 1024.0 }}
{{- range until $n }}{{ $size = mulf $size 1024.0 }}{{ end }}
{{- $_ := set $units $unit $size }}
{{- end }}
{{- mulf (float64 $number) (get $units (trimPrefix $number (toString .))) }}
{{- end }}

{{- /* What must be given, what goes together, and what the cluster must have. */ -}}
{{- define "rlhf-operator.checks" -}}
{{- if not .Values.image.repository }}
{{- fail "image.repository is not set: no image of the operator is published; build one, push it and name it, for example --set image.repository=registry.example.com/rlhf/operator" }}
{{- end }}
{{- if not .Values.trainerImage }}
{{- fail "trainerImage is not set: build the trainer image, push it and name it with its tag, for example --set trainerImage=registry.example.com/rlhf/trainer:0.1.0" }}
{{- end }}
{{- if contains ":" (base .Values.image.repository) }}
{{- fail (printf "image.repository is %s, with a tag or digest: leave that away, and give the tag as image.tag" .Values.image.repository) }}
{{- end }}
{{- if not (contains ":" (base .Values.trainerImage)) }}
{{- fail (printf "trainerImage is %s, without a tag: name it with its tag or digest, for example --set trainerImage=%s:0.1.0" .Values.trainerImage .Values.trainerImage) }}
{{- end }}
{{- if and (not .Values.serviceAccount.create) (not .Values.serviceAccount.name) }}
{{- fail "serviceAccount.create is false and serviceAccount.name is empty: name the ServiceAccount that is there, for example --set serviceAccount.name=rlhf-operator" }}
{{- end }}
{{- range $list, $key := dict "extraEnv" "name" "extraVolumes" "name" "extraVolumeMounts" "mountPath" }}
{{- $seen := list }}
{{- range get $.Values $list }}
{{- $value := get . $key }}
{{- if has $value $seen }}
{{- fail (printf "%s has %s twice as %s: leave one of them out" $list $value $key) }}
{{- end }}
{{- $seen = append $seen $value }}
{{- end }}
{{- end }}
{{- $volumes := list "tmp" "config" }}
{{- range .Values.extraVolumes }}{{ $volumes = append $volumes .name }}{{ end }}
{{- range .Values.extraVolumeMounts }}
{{- if not (has .name $volumes) }}
{{- fail (printf "extraVolumeMounts has %s at %s, and extraVolumes no volume of that name: add it there, or correct the name" .name .mountPath) }}
{{- end }}
{{- end }}
{{- $limits := .Values.resources.limits | default dict }}
{{- range $name, $amount := .Values.resources.requests }}
{{- if hasKey $limits $name }}
{{- $limit := get $limits $name }}
{{- if gt (include "rlhf-operator.amount" $amount | float64) (include "rlhf-operator.amount" $limit | float64) }}
{{- fail (printf "resources.requests.%s is %v, above resources.limits.%s, which is %v, and no pod may ask for that: lower the first or raise the second" $name $amount $name $limit) }}
{{- end }}
{{- end }}
{{- end }}
{{- $user := dict "of" "podSecurityContext" }}
{{- range $of := list "podSecurityContext" "securityContext" }}
{{- range $key, $value := pick (get $.Values $of | default dict) "runAsNonRoot" "runAsUser" }}
{{- if not (kindIs "invalid" $value) }}
{{- $_ := set $user $key $value }}
{{- if eq $key "runAsUser" }}{{ $_ := set $user "of" $of }}{{ end }}
{{- end }}
{{- end }}
{{- end }}
{{- if and $user.runAsNonRoot (hasKey $user "runAsUser") (eq (int64 $user.runAsUser) 0) }}
{{- fail (printf "%s.runAsUser is 0, root, and runAsNonRoot is true, so that no node would start the operator: name another user, or set runAsNonRoot to false" $user.of) }}
{{- end }}
{{- range $name, $monitor := .Values.metrics }}
{{- range $field := list "interval" "scrapeTimeout" }}
{{- if not (include "rlhf-operator.milliseconds" (get $monitor $field) | int64) }}
{{- fail (printf "metrics.%s.%s is %s: take a time above 0, for example 10s" $name $field (get $monitor $field)) }}
{{- end }}
{{- end }}
{{- if gt (include "rlhf-operator.milliseconds" $monitor.scrapeTimeout | int64) (include "rlhf-operator.milliseconds" $monitor.interval | int64) }}
{{- fail (printf "metrics.%s.scrapeTimeout is %s, longer than metrics.%s.interval, which is %s, and Prometheus takes no such target: shorten the first or lengthen the second" $name $monitor.scrapeTimeout $name $monitor.interval) }}
{{- end }}
{{- end }}
{{- $on := list }}
{{- if .Values.metrics.serviceMonitor.enabled }}{{ $on = append $on "metrics.serviceMonitor.enabled" }}{{ end }}
{{- if .Values.metrics.podMonitor.enabled }}{{ $on = append $on "metrics.podMonitor.enabled" }}{{ end }}
{{- if .Values.prometheusRule.enabled }}{{ $on = append $on "prometheusRule.enabled" }}{{ end }}
{{- if and $on (not (.Capabilities.APIVersions.Has "monitoring.coreos.com/v1")) }}
{{- fail (printf "%s: the cluster does not serve monitoring.coreos.com/v1; install the CRDs of prometheus-operator first, or set it to false (helm template knows no cluster: add --api-versions monitoring.coreos.com/v1)" (join ", " $on)) }}
{{- end }}
{{- end }}

{{- /* What the operator does with a namespace's objects. No Secret is read, no pod is made. */ -}}
{{- define "rlhf-operator.rules" -}}
- apiGroups: [rlhf.dev]
  resources: [rlhfjobs]
  # delete: runPolicy.ttlSecondsAfterFinished
  verbs: [get, list, watch, delete]
- apiGroups: [rlhf.dev]
  resources: [rlhfjobs/status]
  verbs: [patch]
- apiGroups: [rlhf.dev]
  # For blockOwnerDeletion where OwnerReferencesPermissionEnforcement is on.
  resources: [rlhfjobs/finalizers]
  verbs: [update]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, delete]
- apiGroups: [""]
  resources: [services]
  verbs: [get, create]
- apiGroups: [""]
  resources: [configmaps]
  # delete: runPolicy.keepFailedAttempts
  verbs: [get, create, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get]
- apiGroups: [""]
  # list: why the Job controller could not make a pod, and what one waits for on its node
  resources: [events]
  verbs: [list, create]
{{- end }}
