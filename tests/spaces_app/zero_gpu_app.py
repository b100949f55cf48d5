"""The Space as on ZeroGPU: `spaces` with its processes is the real one, the service that lends GPUs is a stand-in, and so is the
GPU, whose place the CPU takes. Prints what was asked of both, one line each. test_app.py runs it.
"""

import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlparse

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "spaces_app"))


class Lender(BaseHTTPRequestHandler):
    """Has a GPU for whoever asks."""

    def do_POST(self):
        url = urlparse(self.path)
        print("lender:", url.path, json.dumps(parse_qs(url.query)), flush=True)
        body = json.dumps({"idle": False, "nvidiaIndex": 0, "nvidiaUUID": "GPU-0", "allowToken": "token"}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


def move(pipe, device):
    print(f"moved: {device} in {os.getpid()}", flush=True)
    return pipe


def evaluate(*_):
    print("evaluation", flush=True)
    time.sleep(0.02)


server = ThreadingHTTPServer(("127.0.0.1", 0), Lender)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ |= {
    "SPACES_ZERO_GPU": "true",
    "SPACES_ZERO_DEVICE_API_URL": f"http://127.0.0.1:{server.server_port}",
}

import torch

torch.version.cuda, torch._C._cuda_init, torch.cuda._is_in_bad_fork = "13.0", None, bool  # what a CPU build has not
import app
import spaces.zero.torch
from diffusers import DiffusionPipeline

spaces.zero.torch.init = lambda nvidia_uuid: None  # it would put a tensor on the GPU
spaces.zero.torch.move = lambda callback: None
DiffusionPipeline.to = move
page = app.App(app.MODEL_ID)
page.pipe.unet.register_forward_pre_hook(evaluate)
app.launch(page)
