"""Pods of varied shapes: what is added, what is refused and by which code, and what is left alone."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.pods import api_token, loaded, pod
from valetkey.contracts import codes
from valetkey.injector.core import names
from valetkey.injector.core.mutation import Injected, Place, Refusal, Untouched, mutate
from valetkey.injector.core.validation import unchanged, validate

HERE = Place("agents", (1, 31))
OLD = Place("agents", (1, 28))
EXAMPLE = loaded()
APP = {"name": "app", "image": "app:1"}
USER = {"runAsUser": 10_001}
TRANSPARENT = {names.MODE: "transparent"}


def done(document: dict[str, Any], place: Place = HERE, settings: Any = EXAMPLE) -> dict[str, Any]:
    before = copy.deepcopy(document)
    result = mutate(document, place, settings)
    assert isinstance(result, Injected), result
    assert document == before, "mutate changed what it was given"
    again = mutate(result.pod, place, settings)
    assert isinstance(again, Injected), again
    assert again.pod == result.pod
    assert validate(result.pod, place, settings) is None
    return result.pod


def env(container: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each.get("value", "") for each in container.get("env", ())}


def sidecar(document: dict[str, Any]) -> dict[str, Any]:
    spec = document["spec"]
    both = (*spec.get("initContainers", ()), *spec["containers"])
    [found] = [each for each in both if each["name"] == names.CONTAINER]
    return found


def mounting(document: dict[str, Any], volume: str) -> set[str]:
    spec = document["spec"]
    return {
        container["name"]
        for container in (*spec.get("initContainers", ()), *spec["containers"])
        for mount in container.get("volumeMounts", ())
        if mount["name"] == volume
    }


def test_a_native_sidecar_comes_first_and_is_waited_for() -> None:
    made = done(pod(APP, initContainers=[{"name": "migrate", "image": "app:1"}]))
    first, second = made["spec"]["initContainers"]
    assert (first["name"], first["restartPolicy"], second["name"]) == (
        names.CONTAINER, "Always", "migrate",
    )  # fmt: skip
    assert first["startupProbe"]["httpGet"] == {"path": "/readyz", "port": 7071, "scheme": "HTTP"}
    assert "lifecycle" not in first
    # Init containers that follow call through it as well.
    for container in (second, made["spec"]["containers"][0]):
        assert env(container)["HTTPS_PROXY"] == env(container)["https_proxy"]
        assert env(container)["https_proxy"] == "http://127.0.0.1:7072"
        assert env(container)["SSL_CERT_FILE"] == "/run/valetkey/bundle.pem"
        assert {"name": names.TRUST, "mountPath": "/run/valetkey", "readOnly": True} in container[
            "volumeMounts"
        ]


def test_before_native_sidecars_it_is_the_first_container_and_others_wait_for_its_hook() -> None:
    document = pod(APP, initContainers=[{"name": "migrate", "image": "app:1"}])
    made = done(document, OLD)
    first, app = made["spec"]["containers"]
    assert first["name"] == names.CONTAINER
    assert "restartPolicy" not in first
    assert first["lifecycle"]["postStart"]["exec"]["command"] == [
        "python3", "-m", "valetkey.injector.wait", "ready", "http://127.0.0.1:7071/readyz", "120",
    ]  # fmt: skip
    assert first["lifecycle"]["preStop"]["exec"]["command"][3:] == ["stay", "5"]
    assert env(app)["http_proxy"]
    # What runs before the sidecar can't call through it.
    assert made["spec"]["initContainers"] == document["spec"]["initContainers"]
    result = mutate(document, OLD, EXAMPLE)
    assert isinstance(result, Injected)
    assert any("init containers run before it" in each for each in result.warnings)


def test_its_tokens_key_and_record_are_the_sidecar_s_alone() -> None:
    made = done(pod(APP, {"name": "other", "image": "b"}))
    for volume in names.VOLUMES - {names.TRUST, names.OPERATOR}:
        assert mounting(made, volume) == {names.CONTAINER}, volume
    assert mounting(made, names.TRUST) == {names.CONTAINER, "app", "other"}
    volumes = {each["name"]: each for each in made["spec"]["volumes"]}
    tokens = [each["serviceAccountToken"] for each in volumes[names.TOKEN]["projected"]["sources"]]
    assert tokens == [
        {
            "audience": "https://broker.valetkey.svc:7080",
            "expirationSeconds": 3600,
            "path": "token",
        },
        {
            "audience": "https://collector.valetkey.svc:7090",
            "expirationSeconds": 3600,
            "path": "collector-token",
        },
    ]
    assert not [
        mount
        for mount in sidecar(made)["volumeMounts"]
        if mount.keys() & {"subPath", "subPathExpr"}
    ]


@pytest.mark.parametrize("place", [HERE, OLD], ids=["native", "plain"])
@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_what_is_added_is_fit_for_pod_security_restricted(place: Place, mode: str) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted."""
    made = done(pod(APP, annotations={names.MODE: mode}), place)
    security = sidecar(made)["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] > 0
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert security["readOnlyRootFilesystem"] is True
    kinds = {key for volume in made["spec"]["volumes"] for key in volume if key != "name"}
    assert kinds <= {"projected", "configMap", "emptyDir"}


def test_in_reverse_mode_the_workload_gets_nothing_but_a_listener() -> None:
    made = done(pod(APP, annotations={names.MODE: "reverse"}))
    assert made["spec"]["containers"] == [APP]
    [listener] = json.loads(env(sidecar(made))["VALETKEY_PROXY__LISTENERS"])
    assert (listener["bind"], listener["mode"]) == ("127.0.0.1:7070", "reverse")


def test_in_transparent_mode_the_redirect_comes_before_all_for_each_user_of_the_workload() -> None:
    document = pod(
        {**APP, "securityContext": {"runAsUser": 10_002}},
        {"name": "other", "image": "b"},
        initContainers=[{"name": "migrate", "image": "app:1"}],
        securityContext=USER,
        annotations=TRANSPARENT,
    )
    made = done(document)
    redirect, second, third = made["spec"]["initContainers"]
    assert (redirect["name"], second["name"], third["name"]) == (
        names.REDIRECT, names.CONTAINER, "migrate",
    )  # fmt: skip
    assert redirect["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN"]}
    assert redirect["command"][2].startswith("for uid in 10001 10002; do")
    assert redirect["command"][3:] == [
        "/usr/local/bin/redirect.sh", "--port", "7073", "--ports", "80,443", "--dns", "resolv.conf",
    ]  # fmt: skip
    assert "HTTP_PROXY" not in env(made["spec"]["containers"][0])
    assert env(made["spec"]["containers"][0])["SSL_CERT_FILE"]


def test_who_comes_later_is_redirected_too() -> None:
    made = done(pod(APP, securityContext=USER, annotations=TRANSPARENT))
    made["spec"]["containers"].append(
        {"name": "late", "image": "l", "securityContext": {"runAsUser": 10_007}}
    )
    refusal = validate(made, HERE, EXAMPLE)
    assert refusal is not None
    assert refusal.code is codes.INJECT_SIDECAR_CHANGED
    again = done(made)
    assert again["spec"]["initContainers"][0]["command"][2].startswith("for uid in 10001 10007;")


def test_who_comes_later_gets_the_variables_too() -> None:
    made = done(pod(APP))
    made["spec"]["containers"].insert(0, {"name": "late", "image": "l"})
    made["spec"]["initContainers"].insert(0, {"name": "early", "image": "e"})
    made["spec"]["volumes"].insert(0, {"name": "late", "emptyDir": {}})
    again = done(made)
    assert [each["name"] for each in again["spec"]["initContainers"]] == [names.CONTAINER, "early"]
    for container in (*again["spec"]["containers"], again["spec"]["initContainers"][1]):
        assert env(container)["http_proxy"]


OWN = {
    "another proxy": ([{"name": "HTTPS_PROXY", "value": "http://p:1"}], "app/HTTPS_PROXY"),
    "by a Secret": (
        [{"name": "SSL_CERT_FILE", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
        "app/SSL_CERT_FILE",
    ),
    "emptied": ([{"name": "JAVA_TOOL_OPTIONS"}], "app/JAVA_TOOL_OPTIONS"),
    "two": (
        [{"name": "PIP_CERT", "value": "/p"}, {"name": "http_proxy", "value": ""}],
        "app/PIP_CERT,app/http_proxy",
    ),
}


@pytest.mark.parametrize("name", OWN)
def test_a_variable_of_the_workload_s_own_is_kept_and_said(name: str) -> None:
    variables, kept = OWN[name]
    document = pod({**APP, "env": variables})
    made = done(document)
    [app] = made["spec"]["containers"]
    assert app["env"][: len(variables)] == variables
    assert made["metadata"]["annotations"][names.KEPT] == kept
    # No other spelling of it is added: most clients would take that one.
    lower = {each["name"].lower() for each in variables}
    assert not [each for each in app["env"][len(variables) :] if each["name"].lower() in lower]
    result = mutate(document, HERE, EXAMPLE)
    assert isinstance(result, Injected)
    assert len(result.warnings) == kept.count(",") + 1
    assert all(len(each) <= 256 for each in result.warnings)


def test_what_was_kept_is_said_as_it_is_by_now() -> None:
    made = done(pod({**APP, "env": [{"name": "PIP_CERT", "value": "/p"}]}))
    del made["spec"]["containers"][0]["env"][0]
    assert names.KEPT not in done(made)["metadata"]["annotations"]


ANNOTATIONS = {
    "unknown": ({"valetkey/colour": "green"}, codes.INJECT_ANNOTATION_UNKNOWN),
    "misspelt": ({"valetkey/Mode": "reverse"}, codes.INJECT_ANNOTATION_UNKNOWN),
    "inject": ({names.INJECT: "yes"}, codes.INJECT_INJECT_INVALID),
    "inject, empty": ({names.INJECT: ""}, codes.INJECT_INJECT_INVALID),
    "mode": ({names.MODE: "Forward"}, codes.INJECT_MODE_INVALID),
    "targets, empty": ({names.TARGETS: ""}, codes.INJECT_TARGETS_INVALID),
    "targets, twice": ({names.TARGETS: "tickets,tickets"}, codes.INJECT_TARGETS_INVALID),
    "targets, a space": ({names.TARGETS: "tickets, payments"}, codes.INJECT_TARGETS_INVALID),
    "targets, unknown": ({names.TARGETS: "tickets,wages"}, codes.INJECT_TARGET_UNKNOWN),
    "routes": ({names.ROUTES_FROM: "../x"}, codes.INJECT_ROUTES_INVALID),
    "routes, a newline": ({names.ROUTES_FROM: "x\n"}, codes.INJECT_ROUTES_INVALID),
    "resources, no YAML": ({names.RESOURCES: "{"}, codes.INJECT_RESOURCES_INVALID),
    "resources, empty": ({names.RESOURCES: ""}, codes.INJECT_RESOURCES_INVALID),
    "resources, unknown": ({names.RESOURCES: '{"limits":{"gpu":"1"}}'}, codes.INJECT_RESOURCES_INVALID),
    "resources, a number": ({names.RESOURCES: '{"limits":{"cpu":1}}'}, codes.INJECT_RESOURCES_INVALID),
    "resources, upside down": (
        {names.RESOURCES: '{"requests":{"memory":"1Gi"},"limits":{"memory":"1G"}}'},
        codes.INJECT_RESOURCES_INVALID,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ANNOTATIONS)
def test_an_annotation_that_is_not_as_it_must_be(name: str) -> None:
    annotations, code = ANNOTATIONS[name]
    result = mutate(pod(annotations=annotations), HERE, EXAMPLE)
    assert isinstance(result, Refusal), result
    assert result.code is code
    assert result.reason


def token(audience: str) -> dict[str, Any]:
    source = {"serviceAccountToken": {"audience": audience, "path": "t"}}
    return {"name": "mine", "projected": {"sources": [source]}}


def mount(volume: str, path: str = "/x", **more: Any) -> dict[str, Any]:
    return {**APP, "volumeMounts": [{"name": volume, "mountPath": path, **more}]}


REFUSED = {
    "no object": ([], codes.INJECT_NOT_A_POD),
    "no spec": ({"metadata": {}}, codes.INJECT_NOT_A_POD),
    "containers of text": ({"spec": {"containers": "app"}}, codes.INJECT_NOT_A_POD),
    "a port of text": (pod({**APP, "ports": [{"containerPort": "80"}]}), codes.INJECT_NOT_A_POD),
    "a name twice": (pod(APP, APP), codes.INJECT_NOT_A_POD),
    "the sidecar's name": (pod(APP, {"name": "valetkey", "image": "evil"}), codes.INJECT_NAME_TAKEN),
    "its name among init containers": (
        pod(APP, initContainers=[{"name": "valetkey", "image": "evil", "restartPolicy": "Always"}]),
        codes.INJECT_NAME_TAKEN,
    ),
    "the redirect's name": (
        pod(APP, initContainers=[{"name": "valetkey-redirect", "image": "evil"}]),
        codes.INJECT_NAME_TAKEN,
    ),
    "a volume's name": (pod(APP, volumes=[{"name": names.TRUST, "emptyDir": {}}]), codes.INJECT_NAME_TAKEN),
    "the token mounted": (pod(mount(names.TOKEN)), codes.INJECT_TOKEN_MOUNTED),
    "the key mounted": (pod(mount(names.PRIVATE)), codes.INJECT_TOKEN_MOUNTED),
    "the record mounted": (pod(mount(names.SPOOL)), codes.INJECT_VOLUME_MOUNTED),
    "the CA mounted to be written": (
        pod(mount(names.TRUST, names.TRUST_DIR)), codes.INJECT_VOLUME_MOUNTED,
    ),
    "the CA mounted elsewhere": (
        pod(mount(names.TRUST, "/x", readOnly=True)), codes.INJECT_VOLUME_MOUNTED,
    ),
    "something else in the CA's place": (
        pod(mount("data", "/var/run/valetkey/", readOnly=True)), codes.INJECT_PATH_TAKEN,
    ),
    "the broker's audience": (pod(APP, volumes=[token("https://broker.valetkey.svc:7080")]), codes.INJECT_TOKEN_REQUESTED),
    "the collector's audience": (pod(APP, volumes=[token("https://collector.valetkey.svc:7090")]), codes.INJECT_TOKEN_REQUESTED),
    "a port of the sidecar's": (pod({**APP, "ports": [{"containerPort": 7071}]}), codes.INJECT_PORT_TAKEN),
    "the host's network": (pod(hostNetwork=True), codes.INJECT_HOST_NETWORK),
    "the host's processes": (pod(hostPID=True), codes.INJECT_SHARED_PROCESSES),
    "shared processes": (pod(shareProcessNamespace=True), codes.INJECT_SHARED_PROCESSES),
    "Windows": (pod(os={"name": "windows"}), codes.INJECT_OS),
    "transparent, no user": (pod(annotations=TRANSPARENT), codes.INJECT_REDIRECT_USER),
    "transparent, root": (
        pod(annotations=TRANSPARENT, securityContext={"runAsUser": 0}), codes.INJECT_REDIRECT_USER,
    ),
    "transparent, an init container as root": (
        pod(
            annotations=TRANSPARENT,
            securityContext=USER,
            initContainers=[{"name": "i", "image": "i", "securityContext": {"runAsUser": 0}}],
        ),
        codes.INJECT_REDIRECT_USER,
    ),
    "transparent, the sidecar's user": (
        pod(annotations=TRANSPARENT, securityContext={"runAsUser": 64_707}), codes.INJECT_SAME_USER,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_pod_that_can_t_have_a_sidecar(name: str) -> None:
    document, code = REFUSED[name]
    result = mutate(document, HERE, EXAMPLE)
    assert isinstance(result, Refusal), result
    assert result.code is code
    assert validate(document, HERE, EXAMPLE) is not None


def test_what_depends_on_settings() -> None:
    closed = loaded(pods__opt_out=False)
    out = pod(annotations={names.INJECT: "false"})
    result = mutate(out, HERE, closed)
    assert isinstance(result, Refusal)
    assert result.code is codes.INJECT_OPT_OUT
    assert isinstance(mutate(out, HERE, EXAMPLE), Untouched)
    assert validate(out, HERE, EXAMPLE) is None
    no_redirect = mutate(
        pod(annotations=TRANSPARENT, securityContext=USER), HERE, loaded(redirect=None)
    )
    assert isinstance(no_redirect, Refusal)
    assert no_redirect.code is codes.INJECT_REDIRECT_OFF
    job = mutate(pod(restartPolicy="OnFailure"), OLD, EXAMPLE)
    assert isinstance(job, Refusal)
    assert job.code is codes.INJECT_NEVER_ENDS
    done(pod(restartPolicy="OnFailure"))


@pytest.mark.parametrize("namespace", EXAMPLE.pods.excluded)
def test_an_excluded_namespace_is_left_alone(namespace: str) -> None:
    document = pod(annotations={names.INJECT: "true"})
    assert isinstance(mutate(document, Place(namespace), EXAMPLE), Untouched)


def test_the_annotations_say_what_the_sidecar_gets() -> None:
    made = done(
        pod(
            annotations={
                names.TARGETS: "tickets",
                names.ROUTES_FROM: "my-routes",
                names.RESOURCES: '{"limits":{"memory":"512Mi","cpu":"1"}}',
            }
        )
    )
    assert set(json.loads(env(sidecar(made))["VALETKEY_PROXY__TARGETS"])) == {"tickets"}
    assert {"name": names.ROUTES, "configMap": {"name": "my-routes", "defaultMode": 420}} in made[
        "spec"
    ]["volumes"]
    assert sidecar(made)["resources"] == {
        "limits": {"memory": "512Mi", "cpu": "1"},
        "requests": {"memory": "96Mi", "cpu": "50m"},
    }


def test_the_api_s_token_is_withdrawn_unless_it_is_asked_for() -> None:
    before = pod({**APP, "volumeMounts": [{"name": "data", "mountPath": "/d"}]},
                 {"name": "b", "image": "b"}, volumes=[{"name": "data", "emptyDir": {}}])  # fmt: skip
    made = done(api_token(before))
    assert made["spec"]["automountServiceAccountToken"] is False
    assert "kube-api-access" not in json.dumps(made)
    assert made == done(before)
    asked = done(
        api_token({**before, "spec": {**before["spec"], "automountServiceAccountToken": True}})
    )
    assert mounting(asked, "kube-api-access-x7k2p") == {"app", "b"}
    kept = done(api_token(before), settings=loaded(pods__api_access="keep"))
    assert mounting(kept, "kube-api-access-x7k2p") == {"app", "b"}
    assert "automountServiceAccountToken" not in kept["spec"]


ASKING = {
    "nothing": (None, None, None),
    "what a pod says itself": ({"requests": {"cpu": "8"}}, None, {"requests": {"cpu": "8"}}),
    "as much as its limit, where no container asks": (
        {"requests": {"cpu": "8"}, "limits": {"cpu": "9", "memory": "16Gi"}},
        None,
        {"requests": {"cpu": "8", "memory": "16Gi"}, "limits": {"cpu": "9", "memory": "16Gi"}},
    ),
    "what containers ask, with the sidecar's": (
        {"limits": {"cpu": "9", "memory": "16Gi"}},
        {"requests": {"memory": "1Gi"}},
        {"requests": {"cpu": "9"}, "limits": {"cpu": "9", "memory": "16Gi"}},
    ),
    "what containers ask by a limit": (
        {"limits": {"memory": "16Gi"}},
        {"limits": {"memory": "1Gi"}},
        {"limits": {"memory": "16Gi"}},
    ),
}


@pytest.mark.parametrize("name", ASKING)
def test_a_pod_with_resources_as_a_whole_asks_for_no_less(name: str) -> None:
    """As the API server fills them in after webhooks, with a sidecar as without."""
    whole, container, wanted = ASKING[name]
    document = pod({**APP, **({"resources": container} if container else {})},
                   **({"resources": whole} if whole else {}))  # fmt: skip
    made = done(document)
    assert made["spec"].get("resources") == wanted
    assert done(made) == made


def test_a_volume_of_that_kind_that_something_else_mounts_stays() -> None:
    document = api_token(pod())
    document["spec"]["containers"][0]["volumeMounts"].append(
        {"name": "kube-api-access-x7k2p", "mountPath": "/elsewhere"}
    )
    made = done(document)
    assert mounting(made, "kube-api-access-x7k2p") == {"app"}


FILLED_IN = {
    "LimitRange": lambda c: c["resources"].setdefault("limits", {}).update(cpu="1"),
    "quantities": lambda c: c["resources"].update(requests={"cpu": "0.05", "memory": "98304Ki"}),
    "AlwaysPullImages": lambda c: c.update(imagePullPolicy="Always"),
    "procMount": lambda c: c["securityContext"].update(procMount="Default"),
    "resizePolicy": lambda c: c.update(
        resizePolicy=[{"resourceName": "cpu", "restartPolicy": "NotRequired"}]
    ),
    "ServiceAccount": lambda c: c["volumeMounts"].append(
        {"name": "kube-api-access-1", "mountPath": names.API_TOKEN_DIR, "readOnly": True}
    ),
}


@pytest.mark.parametrize("name", FILLED_IN)
def test_what_the_api_server_fills_in_is_no_change(name: str) -> None:
    made = done(pod(automountServiceAccountToken=True))
    FILLED_IN[name](sidecar(made))
    assert validate(made, HERE, EXAMPLE) is None
    assert done(made) == made


CHANGED = {
    "image": lambda c: c.update(image="evil"),
    "command": lambda c: c["command"].append("--debug"),
    "another broker": lambda c: c["env"].append(
        {"name": "VALETKEY_PROXY__BROKER", "value": '{"url":"https://evil"}'}
    ),
    "a variable": lambda c: c["env"][0].update(value="{}"),
    "all variables of a Secret": lambda c: c.update(envFrom=[{"secretRef": {"name": "s"}}]),
    "root": lambda c: c["securityContext"].update(runAsUser=0),
    "privileged": lambda c: c["securityContext"].update(privileged=True),
    "a capability": lambda c: c["securityContext"]["capabilities"].update(add=["SYS_PTRACE"]),
    "a hook": lambda c: c.update(lifecycle={"postStart": {"exec": {"command": ["sh"]}}}),
    "no probe": lambda c: c.pop("startupProbe"),
    "a mount": lambda c: c["volumeMounts"].append({"name": "data", "mountPath": "/d"}),
    "its own file mounted over": lambda c: c["volumeMounts"].append(
        {"name": "kube-api-access-1", "mountPath": "/usr/lib", "readOnly": True}
    ),
    "less memory": lambda c: c["resources"]["limits"].update(memory="1Mi"),
    "not restarted": lambda c: c.pop("restartPolicy"),
    "restarted at a resize": lambda c: c.update(
        resizePolicy=[{"resourceName": "cpu", "restartPolicy": "RestartContainer"}]
    ),
    "a number for true": lambda c: c["securityContext"].update(runAsNonRoot=1),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_sidecar_that_was_changed_is_refused(name: str) -> None:
    made = done(pod())
    changed = copy.deepcopy(made)
    CHANGED[name](sidecar(changed))
    refusal = validate(changed, HERE, EXAMPLE)
    assert refusal is not None
    assert refusal.code is codes.INJECT_SIDECAR_CHANGED
    assert isinstance(mutate(changed, HERE, EXAMPLE), Refusal)
    later = unchanged(made, changed, EXAMPLE)
    assert later is not None
    assert later.code is codes.INJECT_SIDECAR_CHANGED


def test_a_sidecar_that_is_missing_in_part_is_refused() -> None:
    made = done(pod(annotations=TRANSPARENT, securityContext=USER))
    for where in ("initContainers", "volumes"):
        for index in range(len(made["spec"][where])):
            less = copy.deepcopy(made)
            del less["spec"][where][index]
            refusal = validate(less, HERE, EXAMPLE)
            assert refusal is not None
            assert refusal.code is codes.INJECT_SIDECAR_MISSING
    behind = copy.deepcopy(made)
    early = {"name": "early", "image": "e", "securityContext": {"runAsUser": 10_001}}
    behind["spec"]["initContainers"].insert(0, early)
    refusal = validate(behind, HERE, EXAMPLE)
    assert refusal is not None
    assert refusal.code is codes.INJECT_SIDECAR_CHANGED


def test_a_volume_that_was_exchanged_is_refused() -> None:
    made = done(pod())
    for volume in made["spec"]["volumes"]:
        kept = dict(volume)
        volume.clear()
        volume.update(name=kept["name"], hostPath={"path": "/"})
        refusal = validate(made, HERE, EXAMPLE)
        assert refusal is not None
        assert refusal.code is codes.INJECT_SIDECAR_CHANGED
        volume.clear()
        volume.update(kept)


def test_a_pod_that_runs_is_judged_by_what_it_was() -> None:
    """Settings of another day do not end what users may do with a pod of then."""
    made = done(pod(), settings=loaded(sidecar__image="of.another/day:1"))
    assert validate(made, HERE, EXAMPLE) is not None
    labelled = copy.deepcopy(made)
    labelled["metadata"]["labels"]["colour"] = "green"
    assert unchanged(made, labelled, EXAMPLE) is None
    for name, volume, code in (
        ("debug", names.TOKEN, codes.INJECT_TOKEN_MOUNTED),
        ("debug", names.SPOOL, codes.INJECT_VOLUME_MOUNTED),
    ):
        debugged = copy.deepcopy(made)
        debugged["spec"]["ephemeralContainers"] = [
            {"name": name, "image": "d", "volumeMounts": [{"name": volume, "mountPath": "/x"}]}
        ]
        refusal = unchanged(made, debugged, EXAMPLE)
        assert refusal is not None
        assert refusal.code is code
    for target, refused in ((names.CONTAINER, True), ("app", False)):
        debugged = copy.deepcopy(made)
        debugged["spec"]["ephemeralContainers"] = [
            {"name": "debug", "image": "d", "targetContainerName": target}
        ]
        assert (unchanged(made, debugged, EXAMPLE) is not None) is refused
    plain_debug = copy.deepcopy(made)
    plain_debug["spec"]["ephemeralContainers"] = [{"name": "debug", "image": "d"}]
    assert unchanged(made, plain_debug, EXAMPLE) is None
    assert unchanged(pod(), pod(APP, {"name": "x", "image": "y"}), EXAMPLE) is None


# --- for any pod ----------------------------------------------------------------------------------

NAME = st.sampled_from(["app", "web", "log", "db", "cache", "init-1", "init-2", "sidekick"])
VARIABLE = st.fixed_dictionaries(
    {
        "name": st.sampled_from(
            ["HTTP_PROXY", "no_proxy", "SSL_CERT_FILE", "JAVA_TOOL_OPTIONS", "A"]
        )
    },
    optional={"value": st.sampled_from(["", "x", "http://127.0.0.1:7072"])},
)
CONTAINER = st.fixed_dictionaries(
    {"name": NAME, "image": st.just("i:1")},
    optional={
        "env": st.none() | st.lists(VARIABLE, max_size=4, unique_by=lambda each: each["name"]),
        "volumeMounts": st.lists(
            st.fixed_dictionaries(
                {"name": st.just("data"), "mountPath": st.sampled_from(["/d", "/e"])}
            ),
            max_size=2,
        ),
        "ports": st.lists(
            st.fixed_dictionaries({"containerPort": st.integers(1, 7000)}), max_size=2
        ),
        "restartPolicy": st.just("Always"),
        "futureField": st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3)),
    },
)
SPEC = st.fixed_dictionaries(
    {"all": st.lists(CONTAINER, min_size=1, max_size=6, unique_by=lambda each: each["name"])},
    optional={
        "volumes": st.none() | st.just([{"name": "data", "emptyDir": {}}]),
        "restartPolicy": st.just("Always"),
        "automountServiceAccountToken": st.booleans(),
        "securityContext": st.fixed_dictionaries({"runAsUser": st.integers(1, 60_000)}),
        "terminationGracePeriodSeconds": st.integers(0, 60),
        "tolerations": st.just([{"operator": "Exists"}]),
    },
)


@st.composite
def pods(draw: st.DrawFn) -> dict[str, Any]:
    spec = draw(SPEC)
    everything = spec.pop("all")
    cut = draw(st.integers(0, len(everything) - 1))
    if cut:
        spec["initContainers"] = everything[:cut]
    spec["containers"] = everything[cut:]
    modes = ["forward", "reverse"] + (["transparent"] if "securityContext" in spec else [])
    annotations = draw(
        st.none()
        | st.just({})
        | st.sampled_from(modes).map(lambda mode: {names.MODE: mode, "a": "b"})
    )
    made = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec}
    if annotations is not None:
        made["metadata"]["annotations"] = annotations
    return api_token(made) if draw(st.booleans()) and spec.get("volumes", []) is not None else made


def without_what_was_added(after: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """The pod without all that is the injector's, so that it can be held beside the one before."""
    left = copy.deepcopy(after)
    spec, old = left["spec"], before["spec"]
    spec["volumes"] = [each for each in spec["volumes"] if each["name"] not in names.VOLUMES]
    for where in ("initContainers", "containers"):
        if where not in spec:
            continue
        spec[where] = [each for each in spec[where] if each["name"] not in names.CONTAINERS]
        for container, was in zip(spec[where], old.get(where, ()), strict=True):
            own = [each["name"] for each in was.get("env") or ()]
            for key, keep in (
                ("env", lambda each, own=own: each["name"] in own),
                ("volumeMounts", lambda each: each["name"] != names.TRUST),
            ):
                if key in container:
                    container[key] = [each for each in container[key] or () if keep(each)]
    return left


def plain(value: Any) -> Any:
    """Without empty lists and nulls, which the API server takes for nothing at all."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items() if plain(each) not in (None, [])}
    return [plain(each) for each in value] if isinstance(value, list) else value


@given(pods(), st.sampled_from([HERE, OLD]))
def test_nothing_of_the_pod_is_lost_or_changed(document: dict[str, Any], place: Place) -> None:
    settings = loaded_once("keep")
    made = done(document, place, settings)
    left = without_what_was_added(made, document)
    for noted in (names.INJECTED, names.KEPT):
        left["metadata"]["annotations"].pop(noted, None)
    left["metadata"]["annotations"] = left["metadata"]["annotations"] or None
    before = copy.deepcopy(document)
    before["metadata"]["annotations"] = before["metadata"].get("annotations") or None
    assert plain(left) == plain(before)


@given(pods(), CONTAINER, st.sampled_from([HERE, OLD]), st.booleans())
def test_invoked_again_it_changes_nothing_but_what_is_new(
    document: dict[str, Any], late: dict[str, Any], place: Place, first: bool
) -> None:
    made = done(document, place)
    late = {**late, "name": "late"}
    made["spec"]["containers"].insert(0 if first else len(made["spec"]["containers"]), late)
    again = done(made, place)
    [equipped] = [each for each in again["spec"]["containers"] if each["name"] == "late"]
    usual = [
        each for each in again["spec"]["containers"] if each["name"] not in {"late", "valetkey"}
    ]
    assert {each["name"] for each in equipped.get("env") or ()} >= {
        each["name"]
        for each in usual[0].get("env") or ()
        if each["name"] in {"REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "PIP_CERT"}
    }
    again["spec"]["containers"] = [
        each for each in again["spec"]["containers"] if each["name"] != "late"
    ]
    made["spec"]["containers"] = [
        each for each in made["spec"]["containers"] if each["name"] != "late"
    ]
    for each in (again, made):
        each["metadata"]["annotations"].pop(names.KEPT, None)
    assert again == done(made, place) | {"metadata": again["metadata"]}


_LOADED: dict[str, Any] = {}


def loaded_once(api_token: str) -> Any:
    if api_token not in _LOADED:
        _LOADED[api_token] = loaded(pods__api_access=api_token)
    return _LOADED[api_token]
