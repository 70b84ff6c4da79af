"""How an RQ-VAE learns: the torch half, imported when one is fitted and never to use it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prerank import seeds
from prerank.artifacts import FloatArray
from prerank.devices import resolve_device
from prerank.progress import track
from prerank.semantic_ids.config import RqVaeConfig

SMOOTH = 1e-5
SINKHORN_ROUNDS = 20
TINY = 1e-12


class Network(nn.Module):
    """Encoder and decoder, each a linear map plus one hidden layer that starts at nothing.

    At the start the latent is a projection of the vector and the decoder its transpose, so that
    codebooks from k-means are right from the first step; training can only add to that.
    """

    def __init__(self, basis_DC: Tensor, hidden_dim: int) -> None:
        super().__init__()
        n_dims, n_code_dims = basis_DC.shape
        self.encode_linear_DC = nn.Parameter(basis_DC.clone())
        self.decode_linear_CD = nn.Parameter(basis_DC.T.clone())
        self.encode_in = nn.Linear(n_dims, hidden_dim)
        self.encode_out = nn.Linear(hidden_dim, n_code_dims, bias=False)
        self.decode_in = nn.Linear(n_code_dims, hidden_dim)
        self.decode_out = nn.Linear(hidden_dim, n_dims, bias=False)
        nn.init.zeros_(self.encode_out.weight)
        nn.init.zeros_(self.decode_out.weight)

    def encode(self, points_BD: Tensor) -> Tensor:
        """Return latents (B, C) of vectors (B, D)."""
        more_BC: Tensor = self.encode_out(torch.relu(self.encode_in(points_BD)))
        return more_BC.addmm(points_BD, self.encode_linear_DC)

    def decode(self, latents_BC: Tensor) -> Tensor:
        """Return reconstructions (B, D) of quantised latents (B, C)."""
        more_BD: Tensor = self.decode_out(torch.relu(self.decode_in(latents_BC)))
        return more_BD.addmm(latents_BC, self.decode_linear_CD)

    def weights(self) -> dict[str, FloatArray]:
        """Return the weights as arrays, in the layout of `prerank.semantic_ids.rqvae`."""
        found = {
            "encode_linear_DC": self.encode_linear_DC,
            "encode_in_DH": self.encode_in.weight.T,
            "encode_bias_H": self.encode_in.bias,
            "encode_out_HC": self.encode_out.weight.T,
            "decode_linear_CD": self.decode_linear_CD,
            "decode_in_CH": self.decode_in.weight.T,
            "decode_bias_H": self.decode_in.bias,
            "decode_out_HD": self.decode_out.weight.T,
        }
        return {
            name: np.ascontiguousarray(w.detach().cpu().numpy(), dtype=np.float32)
            for name, w in found.items()
        }


class Codebook:
    """One level's codes, moved by exponential averages of what they were given (no gradient).

    Van den Oord et al. 2017, arXiv 1711.00937, appendix A.1. A code whose average count falls
    below ``restart_below`` of an even share moves onto a random latent of the batch.
    """

    def __init__(self, centroids_KC: Tensor, config: RqVaeConfig) -> None:
        self.centroids_KC = centroids_KC.clone()
        self.count_K = torch.ones(len(centroids_KC), device=centroids_KC.device)
        self.sum_KC = self.centroids_KC.clone()
        self.config = config
        self.started = False

    def assign(self, rest_BC: Tensor, balanced: bool) -> Tensor:
        """Return each row's code (B,): the nearest, or one of a balanced assignment."""
        scores_BK = rest_BC @ self.centroids_KC.T
        scores_BK -= self.centroids_KC.square().sum(dim=1) / 2
        if balanced:
            scores_BK = sinkhorn(scores_BK, self.config.balance_epsilon)
        return scores_BK.argmax(dim=1)

    def update(self, rest_BC: Tensor, codes_B: Tensor, generator: torch.Generator) -> None:
        """Move the codes towards the mean of the rows they were given; restart dead ones."""
        n_codes, decay = len(self.centroids_KC), self.config.ema_decay
        count_K = torch.bincount(codes_B, minlength=n_codes).to(rest_BC.dtype)
        sum_KC = torch.zeros_like(self.sum_KC).index_add_(0, codes_B, rest_BC)
        even = len(rest_BC) / n_codes
        if not self.started:
            self.count_K, self.sum_KC = self.count_K * even, self.centroids_KC * even
            self.started = True
        self.count_K.lerp_(count_K, 1 - decay)
        self.sum_KC.lerp_(sum_KC, 1 - decay)
        dead = torch.nonzero(self.count_K < self.config.restart_below * even)[:, 0]
        if len(dead):
            rows = torch.randint(len(rest_BC), (len(dead),), generator=generator)
            self.sum_KC[dead] = rest_BC[rows.to(rest_BC.device)] * even
            self.count_K[dead] = even
        self.centroids_KC = self.sum_KC / self.count_K.clamp_min(SMOOTH)[:, None]


def sinkhorn(scores_BK: Tensor, epsilon: float) -> Tensor:
    """Return a plan (B, K) whose rows each sum to 1 and whose columns are near B / K.

    Entropic optimal transport (Cuturi 2013, arXiv 1306.0895) with ``scores`` in units of their
    standard deviation, in log space; the smaller ``epsilon``, the nearer to a hard assignment.
    Rows are normalised last: every row is assigned.
    """
    log_BK = scores_BK / (epsilon * scores_BK.std().clamp_min(TINY))
    share = float(np.log(len(scores_BK) / scores_BK.shape[1]))
    for _ in range(SINKHORN_ROUNDS):
        log_BK = log_BK - torch.logsumexp(log_BK, dim=0, keepdim=True) + share
        log_BK = log_BK - torch.logsumexp(log_BK, dim=1, keepdim=True)
    return log_BK.exp()


def straight_through(latents_BC: Tensor, quantised_BC: Tensor) -> Tensor:
    """Return ``quantised`` with the gradient handed to ``latents`` as it is."""
    return latents_BC + (quantised_BC - latents_BC).detach()


def rotation(latents_BC: Tensor, quantised_BC: Tensor) -> Tensor:
    """Return ``quantised`` with the gradient rotated and scaled onto ``latents``.

    The rotation trick (Fifty et al. 2024, arXiv 2410.06424, equation 4): quantised = s R latents,
    with R the rotation in the plane of both and s the ratio of lengths, both held constant.
    """
    length_B1 = latents_BC.norm(dim=1, keepdim=True).clamp_min(TINY)
    target_B1 = quantised_BC.norm(dim=1, keepdim=True)
    from_BC = (latents_BC / length_B1).detach()
    to_BC = (quantised_BC / target_B1.clamp_min(TINY)).detach()
    half_BC = nn.functional.normalize(from_BC + to_BC, dim=1, eps=TINY)
    along_B1 = (latents_BC * half_BC).sum(dim=1, keepdim=True)
    start_B1 = (latents_BC * from_BC).sum(dim=1, keepdim=True)
    turned_BC: Tensor = latents_BC - 2 * along_B1 * half_BC + 2 * start_B1 * to_BC
    return turned_BC.mul((target_B1 / length_B1).detach())


def train(
    points_ND: FloatArray,
    basis_DC: FloatArray,
    books: Sequence[FloatArray],
    config: RqVaeConfig,
    seed: int,
) -> tuple[dict[str, FloatArray], list[FloatArray]]:
    """Train from a projection and k-means codebooks; return the weights and the codebooks.

    Loss, each term a sum over dimensions and a mean over items, so that both have one scale:
    mean over levels of |x - decode(q_1 + .. + q_l)|^2, plus ``commitment_weight`` times the sum
    over levels of |r_l - q_l|^2, the q held constant. ``progressive`` off: only the last level's
    reconstruction (Zeghidour et al. 2021, arXiv 2107.03312; Lee et al. 2022, arXiv 2203.01941).

    Args:
        points_ND: vectors, (N, D) float32.
        basis_DC: where the encoder starts, (D, C) float32 with orthonormal columns.
        books: per level (K_l, C) float32, codebooks of ``points @ basis``.
    """
    device = resolve_device(config.device)
    torch.manual_seed(seeds.derive(seed, "rq-vae", "network") % 2**63)
    draw = torch.Generator().manual_seed(seeds.derive(seed, "rq-vae", "batches") % 2**63)
    network = Network(torch.from_numpy(basis_DC), config.hidden_dim).to(device)
    levels = [Codebook(torch.from_numpy(book).to(device), config) for book in books]
    points = torch.from_numpy(points_ND).to(device)
    batch = min(config.batch_size, len(points))
    n_batches = len(points) // batch
    optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate)
    # Its warm-up divides by pct_start * total_steps - 1, which is 0 for ten steps.
    total_steps = max(config.epochs * n_batches, 11)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=total_steps, pct_start=0.1
    )
    for _ in track(range(config.epochs), "train RQ-VAE"):
        order = torch.randperm(len(points), generator=draw)[: n_batches * batch]
        for rows in order.view(n_batches, batch).to(device):
            loss = _step(network, levels, points[rows], config, draw)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    return network.weights(), [level.centroids_KC.cpu().numpy() for level in levels]


def _step(
    network: Network,
    levels: Sequence[Codebook],
    points_BD: Tensor,
    config: RqVaeConfig,
    draw: torch.Generator,
) -> Tensor:
    """Return the loss of one batch and let the codebooks follow it."""
    estimate = rotation if config.gradient == "rotation" else straight_through
    latents_BC = network.encode(points_BD)
    total_BC = torch.zeros_like(latents_BC)
    commitment = latents_BC.new_zeros(())
    reconstructions = []
    for number, level in enumerate(levels, start=1):
        rest_BC = latents_BC - total_BC
        last = number == len(levels)
        balanced = config.balance == "all" or (config.balance == "last" and last)
        with torch.no_grad():
            codes_B = level.assign(rest_BC, balanced)
            code_BC = level.centroids_KC[codes_B]
            level.update(rest_BC, codes_B, draw)
        commitment = commitment + (rest_BC - code_BC).square().sum(dim=1).mean()
        total_BC = total_BC + code_BC
        if config.progressive or last:
            back_BD = network.decode(estimate(latents_BC, total_BC))
            reconstructions.append((points_BD - back_BD).square().sum(dim=1).mean())
    return torch.stack(reconstructions).mean() + config.commitment_weight * commitment


def principal_axes(points_ND: FloatArray, n_dims: int) -> NDArray[np.float32]:
    """Return (D, C) orthonormal columns: the ``n_dims`` directions of most energy."""
    second_DD = points_ND.T.astype(np.float64) @ points_ND
    return np.linalg.eigh(second_DD)[1][:, ::-1][:, :n_dims].astype(np.float32)
