"""AdmissionReview (admission.k8s.io/v1): what the API server sends, and what it is answered.

Invariants:

- What can't be read as a review is no review: 400, and nothing is allowed by it.
- An answer has the ``uid`` of what it answers; a refusal has a status, a code and a message.
"""

from __future__ import annotations

import base64
from typing import Any, Final

import msgspec

from valetkey.contracts import codes
from valetkey.contracts.errors import CallerError
from valetkey.injector.core.json_patch import diff
from valetkey.injector.core.mutation import Injected, Place, Refusal, Untouched, mutate
from valetkey.injector.core.validation import unchanged, validate
from valetkey.injector.settings import InjectorSettings

_API: Final = "admission.k8s.io/v1"
# metav1.StatusReason
_REASONS: Final = {
    400: "BadRequest", 403: "Forbidden", 409: "Conflict", 422: "Invalid",
    503: "ServiceUnavailable",
}  # fmt: skip

Json = dict[str, Any]


class GroupVersionKind(msgspec.Struct, frozen=True):
    """``request.kind``."""

    group: str
    version: str
    kind: str


class User(msgspec.Struct, frozen=True):
    """``request.userInfo``."""

    username: str = ""


class Request(msgspec.Struct, frozen=True, rename="camel"):
    """``request``, as far as it is read."""

    uid: str
    kind: GroupVersionKind
    operation: str
    name: str = ""
    namespace: str = ""
    sub_resource: str = ""
    user_info: User = User()
    object: Any = None
    old_object: Any = None


class _Review(msgspec.Struct, frozen=True, rename="camel"):
    api_version: str
    kind: str
    request: Request


_DECODER: Final = msgspec.json.Decoder(_Review)


def read(body: bytes) -> Request:
    """Raises `CallerError`."""
    try:
        review = _DECODER.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CallerError(codes.SERVICE_BAD_REQUEST, f"no AdmissionReview: {error}") from error
    if (review.api_version, review.kind) != (_API, "AdmissionReview") or not review.request.uid:
        raise CallerError(codes.SERVICE_BAD_REQUEST, f"no AdmissionReview of {_API} with a uid")
    return review.request


def mutation(
    request: Request, version: tuple[int, int], loaded: InjectorSettings
) -> tuple[Json, str, str]:
    """The answer, its result and the code of a refusal, for the metric."""
    if refusal := _is_about_pods(request):
        return _refused(request, refusal)
    # Nothing but a new pod can be given a container.
    if request.operation != "CREATE" or request.sub_resource:
        return _allowed(request), "untouched", ""
    result = mutate(request.object, Place(request.namespace, version), loaded)
    match result:
        case Refusal():
            return _refused(request, result)
        case Untouched():
            return _allowed(request), "untouched", ""
        case Injected():
            patch = diff(request.object, result.pod)
            return _allowed(request, patch, result.warnings), "injected", ""


def validation(
    request: Request, version: tuple[int, int], loaded: InjectorSettings
) -> tuple[Json, str, str]:
    """As `mutation`."""
    refusal = _is_about_pods(request)
    if refusal is None and request.operation == "CREATE" and not request.sub_resource:
        refusal = validate(request.object, Place(request.namespace, version), loaded)
    elif refusal is None and request.operation == "UPDATE":
        refusal = unchanged(request.old_object, request.object, loaded)
    return _refused(request, refusal) if refusal else (_allowed(request), "allowed", "")


def protection(request: Request, own: str, loaded: InjectorSettings) -> tuple[Json, str, str]:
    """As `mutation`, of a ConfigMap that is written: the operator's file is the injector's alone.

    ``own`` is the user that the injector is. To delete it is no way to write it: the kubelet keeps
    what it has, new pods wait, and the injector makes it again.
    """
    operator = loaded.sidecar.operator
    kind = request.kind
    if (kind.group, kind.version, kind.kind) != ("", "v1", "ConfigMap"):
        refusal = Refusal(codes.INJECT_NOT_A_POD, f"{kind.kind} of {kind.group}/{kind.version}")
        return _refused(request, refusal)
    # A name that is to be made up by the API server is none of ours.
    if (
        operator is None
        or request.name != operator.config_map
        or request.operation not in {"CREATE", "UPDATE"}
        or (own and request.user_info.username == own)
    ):
        return _allowed(request), "allowed", ""
    where = f"ConfigMap {request.namespace}/{request.name}: {request.user_info.username}"
    return _refused(request, Refusal(codes.INJECT_OPERATOR_PROTECTED, where))


def not_there_yet(request: Request) -> tuple[Json, str, str]:
    """As `mutation`, of a pod whose settings are not in its namespace."""
    where = f"namespace {request.namespace}"
    return _refused(request, Refusal(codes.INJECT_OPERATOR_MISSING, where))


def _is_about_pods(request: Request) -> Refusal | None:
    kind = request.kind
    if (kind.group, kind.version, kind.kind) == ("", "v1", "Pod"):
        return None
    return Refusal(codes.INJECT_NOT_A_POD, f"{kind.kind} of {kind.group}/{kind.version}")


def _allowed(
    request: Request, patch: list[Json] | None = None, warnings: tuple[str, ...] = ()
) -> Json:
    response: Json = {"uid": request.uid, "allowed": True}
    if patch:
        response["patchType"] = "JSONPatch"
        response["patch"] = base64.b64encode(msgspec.json.encode(patch)).decode()
    if warnings:
        response["warnings"] = list(warnings)
    return _review(response)


def _refused(request: Request, refusal: Refusal) -> tuple[Json, str, str]:
    status = {
        "status": "Failure",
        "code": refusal.code.status,
        "reason": _REASONS[refusal.code.status],
        "message": str(refusal),
    }
    response = {"uid": request.uid, "allowed": False, "status": status}
    return _review(response), "refused", refusal.code.name


def _review(response: Json) -> Json:
    return {"apiVersion": _API, "kind": "AdmissionReview", "response": response}
