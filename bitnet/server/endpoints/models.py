"""GET /v1/models and /v1/models/NAME: the models there are, by all of their names."""

from starlette.requests import Request
from starlette.responses import Response

from ..errors import JSON
from ..service import Service


async def models(service: Service, request: Request) -> Response:
    """The list, or one of it by its name; ApiError 404 for another name."""
    about = {
        one.name: {
            "id": one.name,
            "object": "model",
            "created": 0,
            "owned_by": "local",
            "max_model_len": one.model.context,
        }
        for one in service.served
    }
    name = request.path_params.get("name")
    if name is None:
        return JSON({"object": "list", "data": list(about.values())})
    service.check_model(name)
    return JSON(about[name])
