"""Numbers for people."""


def show_bytes(count: float) -> str:
    """`show_bytes(3 << 30)` is "3.0 GiB"."""
    for scale, prefix in ((1 << 40, "T"), (1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K")):
        if count >= scale:
            return f"{count / scale:.1f} {prefix}iB"
    return f"{count:.0f} B"


def show_seconds(seconds: float) -> str:
    """`show_seconds(3.2e-5)` is "32.0 us"."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= scale:
            return f"{seconds / scale:.2f} {unit}"
    return f"{seconds / 1e-6:.1f} us"
