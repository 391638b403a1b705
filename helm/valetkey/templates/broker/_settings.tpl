{{/* config/broker.yaml: what the chart decides, over what the values say. */}}
{{- define "valetkey.broker.settings" -}}
{{- $broker := .Values.broker -}}
{{- $settings := deepCopy $broker.settings -}}
{{- $_ := set $settings "bind" (printf "%s:7080" .Values.bindAddress) -}}
{{- if $broker.tls.terminated -}}
{{- $_ := set $settings "tls" "terminated" -}}
{{- else -}}
{{- $_ := set $settings "tls" (dict "cert_file" "/etc/valetkey/tls/tls.crt" "key_file" "/etc/valetkey/tls/tls.key") -}}
{{- end -}}
{{- if $broker.mtls.url -}}
{{- $_ := set $settings "mtls" (dict "bind" (printf "%s:7081" .Values.bindAddress) "url" $broker.mtls.url) -}}
{{- end -}}
{{- if eq $broker.database.type "sqlite" -}}
{{- $_ := set $settings "database" "sqlite+aiosqlite:////var/lib/valetkey/broker.db" -}}
{{- end -}}
{{- $_ := set $settings "master_key_file" (printf "/etc/valetkey/master/%s" $broker.masterKey.key) -}}
{{- $_ := set $settings "grants_file" "/etc/valetkey/grants/grants.yaml" -}}
{{- if $broker.policies -}}
{{- $_ := set $settings "policies" "/etc/valetkey/policies" -}}
{{- end -}}
{{- toYaml $settings -}}
{{- end -}}
