"""What the command line tells of codecs, and of bundles that are held by them."""

from collections.abc import Sequence
from pathlib import Path

from embank.pipelines.cli.show import out, table
from embank.tables import Bundle, NamedCodec
from embank.tables.errors import ConfigError
from embank.tables.serving.codecs.registry import codec_told
from embank.tables.wording import human_bytes


def exported(path: Path, bundle: Bundle) -> None:
    """What `embank export` has written, and of codecs that were chosen which."""
    nbytes, said = bundle.nbytes, bundle.facts.get("codec", {})
    if "valid_auc" in said:
        held = {
            entry.name: ", ".join(dict.fromkeys(codec_told(m["codec"], m["facts"]) for m in entry.served["matrices"]))
            or "-"
            for entry in bundle.entries
        }
        table(["table", "codec"], [[name, codecs] for name, codecs in held.items()], left=2)
        out.print(
            f"{said['serving_bytes']:,} serving bytes of {said['serving_bytes_fp32']:,} without codecs; AUC on "
            f"validation {said['valid_auc']:.5f}, {said['valid_auc_fp32']:.5f} without",
            markup=False,
        )
    out.print(f"{path}: {len(bundle.entries)} tables, {nbytes:,} bytes ({human_bytes(nbytes)})", markup=False)


def codecs(named: Sequence[NamedCodec]) -> None:
    """Codecs, what they take in their names, their bytes, and the first sentence of each."""
    table(
        ["codec", "of fp32, dim 16", ""],
        [
            [_form(codec), _share(codec), " ".join((codec.cls.__doc__ or "").strip().partition("\n\n")[0].split())]
            for codec in named
        ],
        left=3,
    )


def _form(codec: NamedCodec) -> str:
    """`pca[N][+CODEC]`."""
    more = {"number": "[N]", "inner": "[+CODEC]"}
    return codec.name + "".join(more[argument] for argument in codec.cls.arguments)


def _share(codec: NamedCodec) -> str:
    """Bytes of a million rows, as a share of theirs in fp32; those of some codecs depend on the rows."""
    try:
        return f"{codec.nbytes_of(10**6, 16) / (64 * 10**6):.3f}"
    except ConfigError:
        return "-"
