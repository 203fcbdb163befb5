"""Refusals: a status code of HTTP and one line that says what was wrong and what would be right."""

from __future__ import annotations

from modality_forcing.errors import UserError


class Refused(UserError):
    """A request that is not served.

    Attributes:
        status: of HTTP, 400 to 503.
        retry_after: whole seconds after which it may be worth another try, None where it never is.
    """

    def __init__(self, status: int, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = None if retry_after is None else max(1, round(retry_after))


def not_found() -> Refused:
    """One answer for what never was, is gone, or belongs to somebody else."""
    return Refused(404, "there is no such job here; it may have been removed after its time")
