"""The endpoints: an async function each, of (service, request), that app.ENDPOINTS names.

service: service.Service. request: starlette's. It returns a Starlette response or another ASGI
application, or raises errors.ApiError.
"""
