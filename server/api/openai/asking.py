"""What a request to the engine says of who asks for it."""

from ..engine.interface import Asked
from ..http.errors import ApiError
from ..services import Services


def asked_by(services: Services, priority: int | None = None) -> Asked:
    """Return the fields. priority: as the request wants it. Raises ApiError."""
    tenant, timeout = services.tenant, services.config.queue_timeout
    wanted = priority or 0
    if wanted < 0 and not tenant.is_admin:
        raise ApiError(
            403,
            f"priority {wanted} goes before others, which takes a key of the role admin; this one may give 0 or more.",
            param="priority",
            code="forbidden",
        )
    return Asked(tenant=tenant.name, weight=tenant.weight, queue_timeout=timeout or None, priority=wanted)
