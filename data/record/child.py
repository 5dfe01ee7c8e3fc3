"""One process of one job: imports everything, waits for its orders on standard input, runs, and tells what it did.

Imports take some 8 s, so a child is started while the job before it still runs. Orders and answer are one line of JSON.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import sys
import time
import traceback

import timm  # noqa: F401
import torch
import torch_geometric.loader
import torch_geometric.nn  # noqa: F401
import torchvision  # noqa: F401
import transformers  # noqa: F401
import workloads
from transformers import (  # noqa: F401  # loaded lazily otherwise, in the job's own time
    BertForSequenceClassification,
    DistilBertForSequenceClassification,
    GPT2LMHeadModel,
    LlamaForCausalLM,
)


def main() -> int:
    """Return the exit code: 0 done, 1 the workload failed, 2 no orders came."""
    print("ready", flush=True)
    line = sys.stdin.readline()
    if not line:
        return 2
    orders = json.loads(line)
    answer: dict[str, object] = {}
    code = 0
    try:
        random.seed(orders["params"]["seed"])
        torch.manual_seed(orders["params"]["seed"])
        torch.set_num_threads(4)
        if orders["world"] > 1:
            torch.distributed.init_process_group(
                "nccl",
                init_method=f"tcp://127.0.0.1:{orders['port']}",
                rank=orders["rank"],
                world_size=orders["world"],
            )
        workloads.run(orders["name"], orders["params"], time.time() + orders["seconds"], answer, world=orders["world"])
        answer["peak_memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    except BaseException as error:  # noqa: BLE001  # whatever it was, it belongs into the record
        answer["error"] = repr(error)[:300]
        traceback.print_exc()
        code = 1
    print(json.dumps(answer), flush=True)
    sys.stderr.flush()
    for loader in multiprocessing.active_children():
        loader.kill()
    return code


if __name__ == "__main__":
    os._exit(main())  # the CUDA context and the loaders need not be taken down in order
