"""Any module that maps tokens to the logits of the next one: a plain transformer, a recurrent net."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from memguard.adapters._causality import check_causal
from memguard.adapters._device import device_of, doubled
from memguard.adapters._limits import limits_of, logits_in
from memguard.adapters._listening import Listener
from memguard.adapters._sequences import batches, check_readable, padded, places
from memguard.adapters.base import Ability
from memguard.adapters.sampling import Reading, sample
from memguard.capture.stillness import untouched
from memguard.errors import AbilityError
from memguard.records.content import Ragged

__all__ = ["CausalAdapter"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
FromTokens = Callable[[Any, Tensor], Tensor]


class CausalAdapter:
    """Ask a module whose forward maps ``(B, T)`` tokens to ``(B, T, V)`` logits of the token after each.

    When it is made, the module is called on a few short sequences: to learn V, the most tokens that it reads and what
    its output layer is given, and to see that it is causal, that padding and the other sequences of a batch do not
    matter and that nothing is left to chance. What fails here is refused. Every call is made in eval mode without
    gradients; modes, buffers and random states are given back.

    Shorter sequences are padded on the right, where a causal model does not look. Log-probabilities are computed in
    float64 from the logits as they come, so that results differ between batches only by what the module itself
    rounds (1e-5 at most in float32).

    Args:
        module: A ``torch.nn.Module``, a LightningModule too.
        logits: ``logits(module, tokens)`` instead of ``module(tokens)``, where more is needed than tokens.
        vocabulary: V, if it is known and to be checked.
        longest: Most tokens of a sequence. Left out, it is found from a table of positions that the module looks up
            or, on the CPU, by trying up to 1,024 tokens; ``None`` afterwards means that no limit was met.
        pad: A token that fills up shorter sequences; the module's own padding token if it has one.
        stop: A token that ends a continuation, or several.
        batch: Most sequences in one call; fewer where their logits would take more than 128 MB.
        embed: ``embed(module, tokens)``, ``(B, T, D)`` states, instead of what the output layer is given.

    Attributes:
        abilities: "embed" only where the input of the output layer can be heard, or ``embed`` was passed.

    Raises:
        AbilityError: If the module does not fit, with what was seen.

    What it does and does not show: the checks are made on a handful of short sequences. Whether tokens mean to the
    module what the caller thinks is not seen here; ``find_adapter`` with the module's own losses sees it.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> class Net(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.emb, self.rnn, self.out = nn.Embedding(9, 4), nn.GRU(4, 4, batch_first=True), nn.Linear(4, 9)
        ...     def forward(self, tokens):
        ...         return self.out(self.rnn(self.emb(tokens))[0])
        >>> model = CausalAdapter(Net())
        >>> model.vocabulary, model.longest, sorted(model.abilities)
        (9, None, ['embed', 'generate', 'log_probs'])
        >>> model.log_probs(Ragged.from_lists([[1, 2, 3], [4, 5]])).round(2)
        array([  nan, -1.91, -2.21,   nan, -2.06])
        >>> model.generate(Ragged.from_lists([[1, 2]]), 3, samples=2).lengths.tolist()
        [3, 3]
    """

    _cached = False  # whether continuations are read one token at a time, from sequences of one length

    def __init__(
        self,
        module: nn.Module,
        *,
        logits: FromTokens | None = None,
        vocabulary: int | None = None,
        longest: int | None = None,
        pad: int = 0,
        stop: int | tuple[int, ...] | None = None,
        batch: int = 64,
        embed: FromTokens | None = None,
    ) -> None:
        self.module, self.pad, self.stop, self.batch = module, pad, stop, batch
        self._from_tokens, self._embed = logits, embed
        self.device = device_of(module)
        self._place: int | None = None  # of the logits in what forward returns
        with untouched(module):
            found = limits_of(
                lambda tokens: self._logits(tokens, torch.ones_like(tokens, dtype=torch.bool)),
                pad=pad,
                longest=longest,
                device=self.device,
            )
        if vocabulary is not None and vocabulary != found.vocabulary:
            raise AbilityError(
                f"vocabulary={vocabulary} for a module with {found.vocabulary} logits",
                "its tokens are not those of this vocabulary",
                f"pass the module's own tokenizer, with {found.vocabulary} tokens",
            )
        self.vocabulary, self.longest = found.vocabulary, found.longest
        self._limits = found
        self._checked = False
        with untouched(module):
            self._check()
        self.abilities: frozenset[Ability] = frozenset({"log_probs", "generate"})
        if self._has_states():
            self.abilities |= {"embed"}

    def log_probs(self, sequences: Ragged, *, patient: Ints | None = None) -> Floats:
        """Log-probability of each token given those before it, one forward pass a batch.

        See :meth:`memguard.adapters.ModelAdapter.log_probs`; ``patient`` does not matter to a trained module.

        Raises:
            DataError: For tokens outside the vocabulary.
            AbilityError: For sequences longer than ``longest``, or NaN log-probabilities.
        """
        self._refuse(sequences)
        out = np.full(len(sequences.values), np.nan)
        with self._asking():
            for rows, tokens, real in self._batches(sequences, least=2):
                logits = self._logits(tokens[:, :-1], real[:, :-1])
                after = real[:, 1:]
                scores, targets = doubled(logits[after]), tokens[:, 1:][after]
                targets = targets.to(scores.device)
                values = scores.gather(-1, targets[:, None])[:, 0] - scores.logsumexp(-1)
                out[places(sequences, rows)] = _numbers(values)
        return out

    def next_log_probs(self, prompts: Ragged, *, patient: Ints | None = None) -> Floats:
        """Log-probabilities of all V tokens right after each prompt, ``(n, V)``.

        Raises:
            DataError: For empty prompts or tokens outside the vocabulary.
            AbilityError: For prompts longer than ``longest``, or NaN log-probabilities.
        """
        self._refuse(prompts, empty=False)
        out = np.empty((len(prompts), self.vocabulary))
        with self._asking():
            for rows, tokens, real in self._batches(prompts):
                logits = _last(self._logits(tokens, real), real)
                out[rows] = _numbers(torch.log_softmax(doubled(logits), -1))
        return out

    def generate(
        self,
        prompts: Ragged,
        n_new: int,
        *,
        samples: int = 1,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Ragged:
        """Continuations without their prompts; see :func:`memguard.adapters.sampling.sample` for the draws.

        Prompt and continuation together have at most ``longest`` tokens.

        Raises:
            DataError: For empty prompts or tokens outside the vocabulary.
            AbilityError: For prompts longer than ``longest``.
            MemguardError: For settings that define no distribution.
        """
        self._refuse(prompts, empty=False)
        with self._asking():
            return sample(
                self._read,
                prompts,
                n_new,
                vocabulary=self.vocabulary,
                longest=self.longest,
                samples=samples,
                temperature=temperature,
                top_p=top_p,
                seed=seed,
                stop=self.stop,
                batch=self.batch,
                equal=self._cached,
                pad=self.pad,
                device=self.device,
            )

    def embed(self, sequences: Ragged) -> Floats:
        """What the output layer is given at the last token of each sequence, ``(n, D)``.

        Raises:
            DataError: For empty sequences or tokens outside the vocabulary.
            AbilityError: For sequences longer than ``longest``, or if that input cannot be heard.
        """
        self._refuse(sequences, empty=False)
        if "embed" not in self.abilities:
            raise AbilityError(
                "no matrix product of the module gives V logits",
                "what its output layer is given cannot be heard",
                "pass embed= with a function of module and tokens that returns (B, T, D) states",
            )
        parts: list[tuple[Ints, Floats]] = []
        with self._asking():
            for rows, tokens, real in self._batches(sequences):
                parts.append((rows, _numbers(doubled(_last(self._states(tokens, real), real)))))
        out = np.empty((len(sequences), parts[0][1].shape[1] if parts else 0))
        for rows, part in parts:
            out[rows] = part
        return out

    def code_vectors(self) -> Floats | None:
        """The table that the tokens are looked up in, ``(V, D)``; ``None`` where no lookup was heard."""
        table = self._limits.table
        return None if table is None else _numbers(doubled(table[: self.vocabulary]))

    def of(self, module: Any) -> CausalAdapter:
        """Ask another module of the same kind in the same way; its vocabulary has to be as large.

        Raises:
            AbilityError: If it does not fit.
        """
        return CausalAdapter(
            module,
            logits=self._from_tokens,
            vocabulary=self.vocabulary,
            longest=self.longest,
            pad=self.pad,
            stop=self.stop,
            batch=self.batch,
            embed=self._embed,
        )

    def _logits(self, tokens: Tensor, real: Tensor) -> Tensor:
        output = self.module(tokens) if self._from_tokens is None else self._from_tokens(self.module, tokens)
        logits, self._place = logits_in(output, tokens.shape[0], tokens.shape[1], self._place)
        return logits

    def _states(self, tokens: Tensor, real: Tensor) -> Tensor:
        batch, length = tokens.shape
        if self._embed is not None:
            states = self._embed(self.module, tokens)
        else:
            with Listener(products_of=self.vocabulary) as heard:
                self._logits(tokens, real)
            # The last product with V columns is the output layer, whether an nn.Linear or a shared table.
            states = heard.products[-1][0]
            states = states.reshape(batch, length, -1) if states.shape[0] == batch * length else states
        if states.ndim == 3 and states.shape[:2] == (batch, length):
            return states
        raise AbilityError(
            f"states of shape {tuple(states.shape)} for ({batch}, {length}) tokens",
            "a sequence would be given the state of another",
            "pass embed= with a function of module and tokens that returns (B, T, D) states",
        )

    def _has_states(self) -> bool:
        return self._embed is not None or self._limits.width is not None

    def _read(self, tokens: Tensor, lengths: Tensor) -> Reading:
        """Read whole sequences anew for every token."""
        every = torch.arange(len(tokens), device=self.device)
        while True:
            real = torch.arange(tokens.shape[1], device=self.device) < lengths[:, None]
            new, takes = yield self._logits(tokens, real)[every, lengths - 1]
            if int(lengths.max()) == tokens.shape[1]:
                tokens = nn.functional.pad(tokens, (0, 1), value=self.pad)
            tokens[every[takes], lengths[takes]] = new[takes]
            lengths = lengths + takes

    def _batches(self, sequences: Ragged, *, least: int = 1) -> Iterator[tuple[Ints, Tensor, Tensor]]:
        for rows in batches(sequences.lengths, self.batch, self.vocabulary, least=least):
            tokens, real = padded(sequences.take(rows), self.pad)
            yield rows, torch.as_tensor(tokens, device=self.device), torch.as_tensor(real, device=self.device)

    def _refuse(self, sequences: Ragged, *, empty: bool = True) -> None:
        check_readable(sequences, self.vocabulary, self.longest, empty=empty)

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        self.device = device_of(self.module)  # Lightning moves a module to its device and back
        with untouched(self.module):
            self._check()
            yield

    def _check(self) -> None:
        if not self._checked:
            self._checked = check_causal(
                self._logits, self.vocabulary, longest=self.longest, pad=self.pad, device=self.device
            )


def _last(values: Tensor, real: Tensor) -> Tensor:
    """``(B, D)`` of ``(B, T, D)``: those at the last real token."""
    return values[torch.arange(len(values), device=values.device), real.sum(1) - 1]


def _numbers(values: Tensor) -> Floats:
    out: Floats = values.cpu().numpy()
    if np.isnan(out).any():
        raise AbilityError(
            "NaN in what the module returns",
            "no score can be made of it",
            "check the weights: the training may have diverged",
        )
    return out
