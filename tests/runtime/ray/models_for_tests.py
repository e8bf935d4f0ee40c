"""Models that the tests have replicas of, in a module that the processes of groups can import."""

import asyncio
import os
import time
from pathlib import Path


class RecordingModel:
    """Writes the idx of every request to a file, once it is served."""

    def __init__(self, path, seconds=0.02, *placement):
        self.path, self.seconds = path, seconds

    async def handle_request(self, request):
        await asyncio.sleep(self.seconds)
        # one write of a few bytes to a file opened for appending is whole
        with Path(self.path).open("ab", buffering=0) as file:
            file.write(b"%d\n" % request.get("idx", -1))
        return {"idx": request.get("idx"), "pid": os.getpid()}


class FragileModel(RecordingModel):
    """Cannot be made while there is a file."""

    def __init__(self, path, obstacle, *placement):
        super().__init__(path)
        if Path(obstacle).exists():
            raise OSError(f"{obstacle} is in the way")


class BusyModel:
    """Keeps its whole process busy."""

    def __init__(self, seconds, *placement):
        self.seconds = seconds

    async def handle_request(self, request):
        time.sleep(self.seconds)
        return {}


class SlowModel:
    """Takes twice what it says."""

    def __init__(self, seconds, *placement):
        self.seconds = seconds

    async def handle_request(self, request):
        await asyncio.sleep(2 * self.seconds)
        return {"idx": request.get("idx")}

    def get_latency_dict(self):
        return {1: [self.seconds]}


class BrokenModel:
    def __init__(self, *placement):
        raise OSError("no such weights")

    async def handle_request(self, request):
        return request


def gpus_of_process():
    import ray

    return ray.get_gpu_ids()


class GpuModel(RecordingModel):
    """Tells which GPUs its process has."""

    async def handle_request(self, request):
        return await super().handle_request(request) | {"gpus": gpus_of_process()}
