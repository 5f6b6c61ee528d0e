"""The peer whose whole step is one CUDA graph. For `_step.py`."""

import torch
from _peers import TunedTowerNorm
from _settings import Setting, Terms
from _step import Peer
from torch import Tensor


class CapturedPeer:
    """The compiled peer with the tuned norm: its whole step, the optimizer's in, one CUDA graph.

    The batch lies in the graph's buffers already.
    """

    def __init__(self, setting: Setting, terms: Terms) -> None:
        self._peer = Peer(setting, terms, norm=TunedTowerNorm, compile={})
        self._warm_up(terms.lr)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._captured = self._peer.step()

    def _warm_up(self, lr: float) -> None:
        """Makes momentum buffers and compiles; leaves weights and momentum as they began."""
        optimizer, stream = self._peer.optimizer, torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        optimizer.param_groups[0]["lr"] = 0.0
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._peer.step()
        torch.cuda.current_stream().wait_stream(stream)
        for state in optimizer.state.values():
            state["momentum_buffer"].zero_()
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad(set_to_none=True)

    def step(self) -> Tensor:
        self._graph.replay()
        return self._captured

    def weights(self) -> list[Tensor]:
        return self._peer.weights()
