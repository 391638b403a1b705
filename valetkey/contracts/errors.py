"""Errors in families by whose fault they are.

Adapters convert foreign exceptions into one of these at the boundary, ``from`` the original.
``reason`` is for the record and the log; the caller only ever sees ``code``.
"""

from __future__ import annotations

from valetkey.contracts.codes import Code, SettingsCode


class ValetkeyError(Exception):
    """Base of all errors with a code. ``reason`` may hold details, but never a secret."""

    def __init__(self, code: Code, reason: str = "") -> None:
        super().__init__(f"{code.name}: {reason}" if reason else code.name)
        self.code = code
        self.reason = reason

    def again(self) -> ValetkeyError:
        """The same error, to be raised by somebody else."""
        return type(self)(self.code, self.reason)


class CallerError(ValetkeyError):
    """The caller sent something that can't be accepted."""


class PolicyError(ValetkeyError):
    """The policy says no. ``policies`` are the ids of those that decided, where they are known."""

    def __init__(self, code: Code, reason: str = "", *, policies: tuple[str, ...] = ()) -> None:
        super().__init__(code, reason)
        self.policies = policies


class ApprovalError(PolicyError):
    """People have not said yes, or said no. ``approval`` is the id of what is before them."""

    def __init__(self, code: Code, reason: str = "", *, approval: str = "") -> None:
        super().__init__(code, reason)
        self.approval = approval

    def again(self) -> ApprovalError:
        return ApprovalError(self.code, self.reason, approval=self.approval)


class BrokerError(ValetkeyError):
    """The broker could not be asked, or its answer can't be used."""


class TargetError(ValetkeyError):
    """The way to the target, or the target itself, failed."""


class AuditError(ValetkeyError):
    """The record can't be kept."""


class ConfigError(Exception):
    """Settings that can't be used: message with file, line and key path."""


class SettingsRefused(ConfigError):  # noqa: N818 - reads as what it is
    """The same of a running program, which goes on without them; with a code for the record."""

    def __init__(self, code: SettingsCode, message: str) -> None:
        super().__init__(message)
        self.code = code
