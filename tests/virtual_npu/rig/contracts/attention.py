"""Owns the kernels of attention: npu_fusion_attention with its gradient, and decoding.

Not simulated, and refused: pse, prefix (sparse modes 5 and 6), the modes of context parallelism (7
and 8), sink, quantised and paged caches, query_rope.
"""

import torch

from rig.contracts.rules import FLOATS, HALVES, demand

OP = "npu_fusion_attention"
DECODE = "npu_fused_infer_attention_score"
MASK = 2048
_TO_HEADS = {  # layout -> heads first, [b, n, s, d]
    "SBH": lambda t, n: t.unflatten(-1, (n, -1)).permute(1, 2, 0, 3),
    "BSH": lambda t, n: t.unflatten(-1, (n, -1)).transpose(1, 2),
    "BSND": lambda t, n: t.transpose(1, 2),
    "BNSD": lambda t, n: t,
}
_FROM_HEADS = {
    "SBH": lambda t: t.permute(2, 0, 1, 3).flatten(2),
    "BSH": lambda t: t.transpose(1, 2).flatten(2),
    "BSND": lambda t: t.transpose(1, 2),
    "BNSD": lambda t: t,
}


def _is_compressed(mask):
    square = torch.ones(MASK, MASK, dtype=torch.bool).triu_(1)
    return mask.shape[-2:] == square.shape and torch.equal(mask.reshape(MASK, MASK).bool(), square)


def keep(mode, sq, sk, before, after):
    """Boolean [sq, sk], True where a query may look, of the modes that need no own mask (DOC
    sparse_mode): 2 causal from the upper left, 3 from the lower right corner, 4 a band from there.
    """
    i, j = torch.arange(sq)[:, None], torch.arange(sk)[None]
    at = i if mode == 2 else i + sk - sq
    if mode == 4:
        return (j - at <= after) & (at - j <= before)
    return j <= at


class Fusion:
    """One checked call: its sequences, each with heads first, and what they may see."""

    def __init__(self, a):
        self.a, self.layout = a, a.input_layout
        self.packed = self.layout == "TND"
        demand(self.packed or self.layout in _TO_HEADS, OP, f"layout {self.layout!r}", "CPP")
        tensors = (a.query, a.key, a.value)
        demand(
            len({t.dtype for t in tensors}) == 1 and a.query.dtype in FLOATS, OP, "dtypes", "DOC"
        )
        rank = 3 if self.layout in ("SBH", "BSH", "TND") else 4
        demand(all(t.dim() == rank for t in tensors), OP, f"{self.layout} needs {rank} axes", "DOC")
        for name in ("pse", "padding_mask", "prefix", "sink"):
            demand(getattr(a, name) is None, OP, f"{name} is not simulated", "this rig")
        demand(0 < a.keep_prob <= 1, OP, f"keep_prob {a.keep_prob}", "CPP")
        self.q, self.k, self.v = self._sequences()
        self._check_heads()
        self._check_mask()

    def _sequences(self):
        a = self.a
        if not self.packed:
            dim = a.query.shape[-1] // (a.head_num if self.layout in ("SBH", "BSH") else 1)
            groups = a.key.shape[-1] // dim
            sizes = (a.head_num, groups, groups)
            stacked = [
                _TO_HEADS[self.layout](t, n)
                for t, n in zip((a.query, a.key, a.value), sizes, strict=False)
            ]
            return [list(t.unbind(0)) for t in stacked]
        ends = (a.actual_seq_qlen, a.actual_seq_kvlen, a.actual_seq_kvlen)
        demand(
            all(ends) and len(ends[0]) == len(ends[1]),
            OP,
            "TND needs actual_seq_qlen and actual_seq_kvlen of one length",
            "CPP",
        )
        demand(len(ends[0]) <= 2048, OP, f"{len(ends[0])} sequences; 2048 at most", "DOC")
        parts = []
        for tensor, cumulative in zip((a.query, a.key, a.value), ends, strict=False):
            bounds = [0, *cumulative]
            demand(
                all(x <= y for x, y in zip(bounds, bounds[1:], strict=False)),
                OP,
                f"lengths {list(cumulative)} are not cumulative",
                "DOC",
            )
            demand(
                bounds[-1] == tensor.shape[0],
                OP,
                f"lengths end at {bounds[-1]} and T is "
                f"{tensor.shape[0]}: the rest would be undefined memory",
                "DOC",
            )
            parts.append(
                [tensor[x:y].transpose(0, 1) for x, y in zip(bounds, bounds[1:], strict=False)]
            )
        return parts

    def _check_heads(self):
        n, _, dim = self.q[0].shape
        groups = self.k[0].shape[0]
        demand(n == self.a.head_num, OP, f"head_num {self.a.head_num}, query has {n}", "DOC")
        demand(n % groups == 0 and n <= 256, OP, f"{n} heads over {groups} key heads", "DOC")
        demand(self.k[0].shape[-1] == dim and 1 <= dim <= 768, OP, f"D is {dim}", "DOC")
        demand(self.v[0].shape[0] == groups and self.v[0].shape[-1] <= dim, OP, "value", "DOC")

    def _check_mask(self):
        a, mask, mode = self.a, self.a.atten_mask, self.a.sparse_mode
        demand(mode in (0, 1, 2, 3, 4), OP, f"sparse_mode {mode} is not simulated", "this rig")
        if mask is None:
            demand(mode == 0, OP, f"sparse_mode {mode} without atten_mask looks everywhere", "DOC")
            return
        demand(mask.dtype in (torch.bool, torch.uint8), OP, f"atten_mask {mask.dtype}", "DOC")
        if mode >= 2:
            demand(
                _is_compressed(mask),
                OP,
                f"sparse_mode {mode} takes the 2048 x 2048 upper "
                f"triangle, found {tuple(mask.shape)}",
                "DOC",
            )
            demand(mode != 4 or a.pre_tockens + a.next_tockens >= 0, OP, "empty band", "DOC")
            return
        sq, sk, batch = self.q[0].shape[1], self.k[0].shape[1], len(self.q)
        demand(not self.packed, OP, "own masks of TND are not simulated", "this rig")
        shapes = [(sq, sk), (1, 1, sq, sk), (batch, 1, sq, sk), (batch, a.head_num, sq, sk)]
        demand(tuple(mask.shape) in shapes, OP, f"atten_mask {tuple(mask.shape)}", "DOC")
        blind = mask.bool().all(-1).any()
        demand(
            not blind or a.inner_precise == 2,
            OP,
            "a row that sees nothing needs inner_precise 2",
            "DOC",
        )

    def seen(self, index):
        """Boolean [.., sq, sk] of a sequence, or None where everything is seen."""
        a = self.a
        if a.atten_mask is None:
            return None
        if a.sparse_mode < 2:
            mask = ~a.atten_mask.bool()
            return mask if mask.dim() == 2 else mask[min(index, len(mask) - 1)]
        sizes = (self.q[index].shape[1], self.k[index].shape[1])
        return keep(a.sparse_mode, *sizes, a.pre_tockens, a.next_tockens)

    def spread(self, tensor):
        """A key or value [g, s, d], once for each query head, float32."""
        return tensor.float().repeat_interleave(self.a.head_num // tensor.shape[0], 0)

    def scores(self, index, scale):
        """Scaled scores [n, sq, sk], float32, -inf where nothing is seen."""
        scores = self.q[index].float() @ self.spread(self.k[index]).transpose(-1, -2) * scale
        seen = self.seen(index)
        return scores if seen is None else scores.masked_fill(~seen, float("-inf"))

    def dropped(self, index, seed, shape):
        """Factors of dropout, the same for the same seed."""
        if self.a.keep_prob == 1:
            return 1.0
        generator = torch.Generator().manual_seed(seed * 7919 + index)
        return (torch.rand(shape, generator=generator) < self.a.keep_prob) / self.a.keep_prob

    def join(self, parts, like):
        """[heads, s, d] of each sequence -> the tensor of the layout, shaped as `like`."""
        if self.packed:
            out = torch.cat([part.transpose(0, 1) for part in parts])
        else:
            out = _FROM_HEADS[self.layout](torch.stack(parts))
        return out.reshape(like.shape).to(like.dtype).contiguous()

    def statistics(self, rows):
        """[n, sq] of each sequence -> float32 [b, n, s, 8]; TND [t, n, 8] in the order n, t."""
        if self.packed:
            flat = torch.cat(rows, 1)
            wide = flat[..., None].expand(-1, -1, 8).contiguous()
            return wide.view(flat.shape[1], flat.shape[0], 8)
        return torch.stack(rows)[..., None].expand(-1, -1, -1, 8).contiguous()

    def rows(self, statistics):
        """The way back."""
        if self.packed:
            flat = statistics.reshape(self.a.head_num, -1, 8)[..., 0]
            return flat.split([q.shape[1] for q in self.q], 1)
        return statistics[..., 0].unbind(0)


def fusion_attention(a):
    call = Fusion(a)
    seed = int(torch.randint(1, 2**31, ())) if a.keep_prob < 1 else 0
    outs, highest, sums = [], [], []
    for index in range(len(call.q)):
        scores = call.scores(index, a.scale)
        top = scores.amax(-1) if scores.shape[-1] else scores.new_zeros(scores.shape[:-1])
        top = top.masked_fill(top.isinf(), 0.0)
        weights = (scores - top[..., None]).exp()
        total = weights.sum(-1)
        weights = weights / total.clamp_min(1e-38)[..., None]
        weights = weights * call.dropped(index, seed, weights.shape)
        outs.append(weights @ call.spread(call.v[index]))
        highest.append(top)
        sums.append(total)
    like = a.query if a.value.shape[-1] == a.key.shape[-1] else outs[0]
    return (
        call.join(outs, like).to(a.query.dtype),
        call.statistics(highest),
        call.statistics(sums),
        a.query.new_empty(0),
        seed,
        0,
        0,
    )


def fusion_attention_grad(a):
    call = Fusion(a)
    grads, outs = (_query_side(call, t) for t in (a.dy, a.attention_in))
    dq, dk, dv = [], [], []
    for index, (top, total) in enumerate(
        zip(call.rows(a.softmax_max), call.rows(a.softmax_sum), strict=False)
    ):
        grad, out = grads[index].float(), outs[index].float()
        scores = call.scores(index, a.scale_value)
        weights = (scores - top[..., None]).exp() / total.clamp_min(1e-38)[..., None]
        factor = call.dropped(index, a.seed, weights.shape)
        dweights = grad @ call.spread(call.v[index]).transpose(-1, -2) * factor
        dscores = weights * (dweights - (grad * out).sum(-1, keepdim=True)) * a.scale_value

        def fold(tensor, groups=call.k[index].shape[0]):
            return tensor.unflatten(0, (groups, -1)).sum(1)

        dq.append(dscores @ call.spread(call.k[index]))
        dk.append(fold(dscores.transpose(-1, -2) @ call.q[index].float()))
        dv.append(fold((weights * factor).transpose(-1, -2) @ grad))
    empty = a.query.new_empty(0)
    return (call.join(dq, a.query), call.join(dk, a.key), call.join(dv, a.value), empty, empty)


def _query_side(call, tensor):
    if call.packed:
        return [part.transpose(0, 1) for part in tensor.split([q.shape[1] for q in call.q])]
    return list(_TO_HEADS[call.layout](tensor, call.a.head_num).unbind(0))


def fusion_attention_v3(a):
    """What scaled_dot_product_attention calls on an NPU: lengths and seeds are tensors."""
    _lengths_as_lists(a)
    *tensors, seed, offset, _ = fusion_attention(a)
    return (*tensors, torch.tensor([seed]), torch.tensor([offset]))


def fusion_attention_grad_v3(a):
    _lengths_as_lists(a)
    a.seed = 0 if a.seed is None else int(a.seed.reshape(-1)[0])
    return fusion_attention_grad(a)


def _lengths_as_lists(a):
    for name in ("actual_seq_qlen", "actual_seq_kvlen"):
        value = getattr(a, name)
        setattr(a, name, None if value is None else value.tolist())


def fused_infer_attention_score(a):
    """Dense caches in BSH, BSND or BNSD, without quantisation."""
    layout, n = a.input_layout, a.num_heads
    demand(layout in ("BSH", "BSND", "BNSD"), DECODE, f"{layout!r} is not simulated", "this rig")
    for name in (
        "pse_shift",
        "block_table",
        "query_rope",
        "actual_seq_lengths",
        "actual_seq_lengths_kv",
    ):
        demand(getattr(a, name) is None, DECODE, f"{name} is not simulated", "this rig")
    demand(
        all(t.dtype in HALVES for t in (a.query, a.key, a.value)),
        DECODE,
        f"{a.query.dtype}; float16 or bfloat16",
        "DOC",
    )
    groups = a.num_key_value_heads or n
    demand(n % groups == 0 and n // groups <= 64 and n <= 256, DECODE, f"{n}/{groups} heads", "DOC")
    q, k, v = (
        _TO_HEADS[layout](t, h) for t, h in ((a.query, n), (a.key, groups), (a.value, groups))
    )
    demand(
        q.shape[1] == n and k.shape[1] == groups == v.shape[1], DECODE, "numbers of heads", "DOC"
    )
    sq, sk, dim = q.shape[2], k.shape[2], q.shape[3]
    demand(dim <= 512 and (sq == 1 or dim % 16 == 0), DECODE, f"D is {dim}", "DOC")
    mode = a.sparse_mode
    demand(mode in (0, 2, 3, 4), DECODE, f"sparse_mode {mode} is not simulated", "this rig")
    seen = None
    if sq > 1 and mode:  # DOC: without effect for a single query
        demand(
            a.atten_mask is not None and _is_compressed(a.atten_mask),
            DECODE,
            f"sparse_mode {mode} takes the 2048 x 2048 upper triangle",
            "DOC",
        )
        seen = keep(mode, sq, sk, a.pre_tokens, a.next_tokens)
    elif mode == 0:
        demand(a.atten_mask is None, DECODE, "own masks are not simulated", "this rig")
    wide = [t.float().repeat_interleave(n // groups, 1) for t in (k, v)]
    scores = q.float() @ wide[0].transpose(-1, -2) * a.scale
    if seen is not None:
        scores = scores.masked_fill(~seen, float("-inf"))
    out = (scores.softmax(-1) @ wide[1]).to(a.query.dtype)
    return _FROM_HEADS[layout](out).reshape(a.query.shape).contiguous(), torch.zeros(1)
