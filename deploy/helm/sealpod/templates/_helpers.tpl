{{- define "sealpod.name" -}}
{{- if contains "sealpod" .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-sealpod" .Release.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "sealpod.labels" -}}
app.kubernetes.io/name: sealpod
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{/* The label that a node has once it can run pods in VMs. */}}
{{- define "sealpod.readyLabel" -}}
sealpod.io/ready
{{- end }}

{{/* A component's image; takes the root, its name and its digest. */}}
{{- define "sealpod.image" -}}
{{- $repository := printf "%s/%s" .root.Values.image.registry .name -}}
{{- if .digest }}{{ $repository }}@{{ .digest }}{{ else }}{{ $repository }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}{{ end }}
{{- end }}

{{/* The key broker's configuration, in one place; `sealpod-kbs check` reads the same. */}}
{{- define "sealpod.brokerConfig" -}}
{{- $broker := .Values.broker -}}
listen = {{ ternary "[::]:8080" "0.0.0.0:8080" (eq $broker.listen "::") | quote }}
{{- if eq $broker.store.kind "embedded" }}
store = "/var/lib/sealpod-kbs/store.redb"
{{- end }}
admin_keys = [{{ range $index, $file := $broker.admins.files }}{{ if $index }}, {{ end }}{{ printf "/etc/sealpod-kbs/admins/%s" $file | quote }}{{ end }}]
token_lifetime_seconds = {{ $broker.tokenLifetimeSeconds }}
{{- if eq $broker.store.kind "postgres" }}
[store]
kind = "postgres"
url_file = {{ printf "/etc/sealpod-kbs/postgres/%s" $broker.store.postgres.key | quote }}
{{- end }}
{{- if $broker.tls.enabled }}
[tls]
certificate = "/etc/sealpod-kbs/tls/tls.crt"
key = "/etc/sealpod-kbs/tls/tls.key"
{{- end }}
[tpm]
ek_roots = [{{ range $index, $file := $broker.tpm.ekRootFiles }}{{ if $index }}, {{ end }}{{ printf "/etc/sealpod-kbs/ek-roots/%s" $file | quote }}{{ end }}]
enrolled_aks = [{{ range $index, $key := $broker.tpm.enrolledAks }}{{ if $index }}, {{ end }}{{ $key | quote }}{{ end }}]
{{- end }}
