"""An emulator of Google Cloud Storage: `python -m tests.gcs PORT`, with one bucket, named bucket.

gcp-storage-emulator has no generations of objects, without which TensorStore writes nothing, and cannot move objects.
Both are added here: ifGenerationMatch, ifGenerationNotMatch, x-goog-generation and moveTo of
https://cloud.google.com/storage/docs/json_api/v1/objects.
"""

import sys
from http import HTTPStatus

from gcp_storage_emulator import server
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects


def generation(request, storage) -> str:
    """Of the object that a request names; 0: there is none."""
    name = request.params.get("object_id") or request.query["name"][0]
    try:
        return storage.get_file_obj(request.params["bucket_name"], name)["generation"]
    except NotFound:
        return "0"


def with_generations(handler):
    def handle(request, response, storage, *args, **kwargs):
        if "object_id" not in request.params and "name" not in request.query:
            return handler(request, response, storage, *args, **kwargs)
        current = generation(request, storage)
        if request.query.get("ifGenerationMatch", [current])[0] != current:
            response.status = HTTPStatus.PRECONDITION_FAILED
        elif request.query.get("ifGenerationNotMatch", [None])[0] == current:
            response.status = HTTPStatus.NOT_MODIFIED
        else:
            response["x-goog-generation"] = current
            return handler(request, response, storage, *args, **kwargs)

    return handle


def move(request, response, storage, *args, **kwargs):
    if generation(request, storage) == "0":
        response.status = HTTPStatus.NOT_FOUND
        return
    request.params["dest_bucket_name"] = request.params["bucket_name"]
    objects.copy(request, response, storage)
    storage.delete_file(request.params["bucket_name"], request.params["object_id"])


def main(port: int) -> None:
    path = r"^/storage/v1/b/(?P<bucket_name>[^/]+)/o/(?P<object_id>[^/]+)/moveTo/o/(?P<dest_object_id>[^/]+)$"
    server.HANDLERS = ((path, {server.POST: move}), *server.HANDLERS)
    for _, methods in server.HANDLERS:
        for method, handler in methods.items():
            if handler in (objects.get, objects.download, objects.insert, objects.delete):
                methods[method] = with_generations(handler)
    server.create_server("localhost", port, in_memory=True, default_bucket="bucket").run()


if __name__ == "__main__":
    main(int(sys.argv[1]))
