"""GET /v1/models and /v1/models/NAME: the one model there is, by each of its names."""

from starlette.requests import Request
from starlette.responses import Response

from ..errors import JSON
from ..service import Service


async def models(service: Service, request: Request) -> Response:
    """The list, or the one of a name; ApiError 404 for another name."""
    about = {
        "id": service.model_name,
        "object": "model",
        "created": 0,
        "owned_by": "local",
        "max_model_len": service.model.context,
    }
    name = request.path_params.get("name")
    if name is None:
        return JSON({"object": "list", "data": [about | {"id": n} for n in service.model_names]})
    service.check_model(name)
    return JSON(about | {"id": name})
