"""The kernels whose machine code is recorded, those that most problems run: fused, products, softmax and those of caches,
without extras."""

# Parts of a label that say nothing of a kernel's extras.
PLAIN = {"f16", "full", "band", "vec4", "scalar", "sum", "shared", "subgroup", "product_tile", "product_coop",
         "halves"}

# Kernels that have no tile to choose, and which of their words those have that are recorded.
FEW = {
    "decode_team": {"full", "sequences", "vec4", "f16", "sums", "team_subgroup"},
    "merge": {"full", "scalar"},
    "append": {"vec4", "elements", "half", "half_above", "q8", "q4", "blocks", "paged"},
    "rotate": {"vec4", "half", "given", "absent"},
    "advance": {"given", "absent", "advance", "counted"},
    "gradient_tile": {"full", "band", "seeing", "finite", "vec4", "own_rows", "own_keys"},
    "key_gradients": {"full", "band", "seeing", "scalar", "put", "sum", "product_tile"},
    "delta": {"full", "scalar"},
    "pair_sums": {"full", "of_bias", "of_slope", "rows_shared"},
    "sink_gradients": {"full"},
    "linear_gradient": {"vec4", "scalar", "along_k", "along_m", "product_tile"},
    "column_sums": set(),
}


def short(label):
    """The name in the record; None of a kernel that is not in it."""
    name, *parts = label.split(".")
    constants = dict(part.split("=") for part in parts if "=" in part)
    words = [part for part in parts if "=" not in part and not part.isdigit()]
    width = constants.get("head_dim") or constants.get("v_head_dim")
    plain = PLAIN | {"bias"} if name == "linear" else PLAIN
    if not name.startswith("flash") and "product_coop" not in words:
        plain = plain - {"f16"}
    if name in FEW:
        width = constants.get("dim") or constants.get("x_dim") or width
        if constants.get("pairs") == "true" or constants.get("guard") == "true":
            return None
        rows = [constants["rows"], "rows"] if "rows" in constants else []
        true = [constant for constant in ("of_values", "keys_shared") if constants.get(constant) == "true"]
        kept = [name, *([width] if width else []), *rows, *true, *words]
        return " ".join(kept) if set(words) <= FEW[name] else None
    if not name.startswith(("flash", "scores", "values", "linear", "softmax")):
        return None
    yes = lambda constant: constants.get(constant) == "true"
    if not set(words) <= plain or any(map(yes, ["pairs", "heavy", "whole_rows", "every_tile", "split", "ranges"])):
        return None
    if name in ("scores", "values", "linear") and ("vec4" not in words or "band" in words or width == "32"):
        return None
    if name.startswith("flash") and "vec4" not in words:
        return None
    if name == "linear" and "bias" not in words:
        return None
    kept = [word for word in words if word not in ("vec4", "scalar", "sum", "bias", "product_tile", "halves")]
    element = [] if "f16" in words or name in ("linear", "softmax") else ["f32"]
    return " ".join([name, *([width] if width else []), *element, *kept])
