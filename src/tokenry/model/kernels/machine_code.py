"""Running what numba compiled: on torch's threads, and without a trace in torch's settings.

numba is an extra, `pip install "tokenry[fast]"`: whatever imports this has a way in torch too.
"""

from threading import Lock
from typing import Any

import torch
from numba import config, get_num_threads, set_num_threads

ONLY_PRANGE: Any = dict.fromkeys(  # what else numba would do in parallel takes it long to compile
    ("comprehension", "reduction", "inplace_binop", "setitem", "numpy", "stencil", "fusion"), False
) | {"prange": True}
MOST: int = config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
_one_caller = Lock()  # numba's own threads, used where there is no OpenMP, bear no more


def run(function: Any, *arguments: Any) -> None:
    """On as many threads as torch uses."""
    threads = torch.get_num_threads()
    wanted = min(threads, MOST)
    with _one_caller:
        if get_num_threads() != wanted:
            set_num_threads(wanted)
        function(*arguments)
    if torch.get_num_threads() != threads:  # both may use one OpenMP, where numba sets its own
        torch.set_num_threads(threads)
