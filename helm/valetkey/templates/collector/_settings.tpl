{{/* config/collector.yaml: what the chart decides, over what the values say. */}}
{{- define "valetkey.collector.settings" -}}
{{- $collector := .Values.collector -}}
{{- $settings := deepCopy $collector.settings -}}
{{- $_ := set $settings "bind" (printf "%s:7090" .Values.bindAddress) -}}
{{- if $collector.tls.terminated -}}
{{- $_ := set $settings "tls" "terminated" -}}
{{- else -}}
{{- $_ := set $settings "tls" (dict "cert_file" "/etc/valetkey/tls/tls.crt" "key_file" "/etc/valetkey/tls/tls.key") -}}
{{- end -}}
{{- if not $collector.postgresql.existingSecret -}}
{{- $_ := set $settings "database" "sqlite+aiosqlite:////var/lib/valetkey/collector.db" -}}
{{- end -}}
{{- toYaml $settings -}}
{{- end -}}
