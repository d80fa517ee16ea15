"""The registry of heads: one entry for each module beside this one."""

from featcache.probe.heads.info import CLOSED, EXACT, HeadInfo
from featcache.probe.kinds import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from featcache.store.errors import UnknownNameError

_PACKAGE = "featcache.probe.heads"

_ENTRIES = (
    HeadInfo(
        name="linear",
        factory=f"{_PACKAGE}.linear:LinearHead",
        default_layers="last",
        default_tokens=("cls",),
        summary="one affine map of the concatenated tokens",
        source="arXiv 2601.09322 (baseline)",
        size="C * (T * D + 1)",
    ),
    HeadInfo(
        name="attentive",
        factory=f"{_PACKAGE}.attentive:AttentiveHead",
        has_dropout=True,
        has_attention=True,
        default_layers="all",
        default_tokens=("cls", "ap"),
        summary="one learned query attends to the tokens of all layers",
        source="arXiv 2601.09322",
        size="4 * D * num_heads * 2 * (D // num_heads) + 10 * D + C * (D + 1)",
        options={"num_heads": 0},
    ),
    HeadInfo(
        name="scalar-mix",
        factory=f"{_PACKAGE}.scalar_mix:ScalarMixHead",
        has_attention=True,
        by_layer=True,
        default_layers="all",
        default_tokens=("cls", "ap"),
        summary="one weighted sum of layers for each token kind, then an affine map",
        source="ELMo, arXiv 1802.05365; SUPERB, arXiv 2105.01051",
        size="K * L + K + C * (K * D + 1)",
    ),
    HeadInfo(
        name="efficient",
        factory=f"{_PACKAGE}.efficient:EfficientHead",
        has_attention=True,
        default_layers="all",
        default_tokens=("cls", "ap"),
        summary="several learned queries attend to the tokens, without key or value projections",
        source="arXiv 2506.10178",
        size="3 * num_queries * D + C * (num_queries * D + 1)",
        options={"num_queries": 4},
    ),
    HeadInfo(
        name="hierarchical",
        factory=f"{_PACKAGE}.hierarchical:HierarchicalHead",
        has_attention=True,
        by_layer=True,
        default_layers="all",
        default_tokens=("cls", "ap"),
        summary="attention inside groups of neighbouring layers, then across the groups",
        source="LLHA-Net (layer-by-layer hierarchical attention)",
        size="num_groups * D + 3 * D + C * (D + 1)",
        options={"num_groups": 4},
    ),
    HeadInfo(
        name="gated",
        factory=f"{_PACKAGE}.gated:GatedHead",
        has_attention=True,
        by_layer=True,
        default_layers="all",
        default_tokens=("cls", "ap"),
        summary="gates over layers, computed for each image from its pooled tokens",
        source="cross-layer feature pyramids (gates from pooled context)",
        size="L * (D + 1) + 2 * K * D + C * (K * D + 1)",
    ),
    HeadInfo(
        name="recurrent",
        factory=f"{_PACKAGE}.recurrent:RecurrentHead",
        by_layer=True,
        default_layers="all",
        default_tokens=("cls", "ap"),
        summary="a gated recurrent unit runs over the layers in order",
        source="GRU, arXiv 1406.1078; shared over layers as in DIANet, arXiv 1905.10671",
        size="3 * hidden * (K * D + hidden + 2) + 2 * hidden + C * (hidden + 1)",
        options={"hidden": 128},
    ),
    HeadInfo(
        name="stats",
        factory=f"{_PACKAGE}.stats:StatsHead",
        has_attention=True,
        default_layers="all",
        default_tokens=("cls", "ap"),
        summary="attentive mean and standard deviation over the tokens",
        source="attentive statistics pooling, arXiv 1803.10963",
        size="hidden * (D + 2) + 4 * D + C * (2 * D + 1)",
        options={"hidden": 64},
    ),
    HeadInfo(
        name="mlp",
        factory=f"{_PACKAGE}.mlp:MlpHead",
        has_dropout=True,
        default_layers="all",
        default_tokens=("cls", "ap"),
        summary="one hidden layer over the concatenated tokens",
        source="Rumelhart, Hinton and Williams 1986; batch norm, arXiv 1502.03167",
        size="hidden * T * D + 2 * hidden + C * (hidden + 1)",
        options={"hidden": 256},
    ),
    HeadInfo(
        name="ensemble",
        factory=f"{_PACKAGE}.ensemble:EnsembleHead",
        by_layer=True,
        default_layers="all",
        default_tokens=("cls", "ap"),
        summary="average of the logits of one linear probe per layer, each trained by its own loss",
        source="bagging of predictors, Breiman 1996",
        size="L * C * (K * D + 1)",
    ),
    HeadInfo(
        name="knn",
        factory=f"{_PACKAGE}.knn:KnnHead",
        fitting=CLOSED,
        default_layers="last",
        default_tokens=("cls",),
        summary="weighted vote of the nearest training samples by cosine",
        source="arXiv 1805.01978; as in DINO, arXiv 2104.14294",
        size="0",
        swept={"k": "1, 5, 10, 20, 50, 100, 200", "temperature": "0.02, 0.07, 0.2, 1"},
    ),
    HeadInfo(
        name="ncm",
        factory=f"{_PACKAGE}.ncm:NcmHead",
        fitting=CLOSED,
        default_layers="last",
        default_tokens=("cls",),
        summary="nearest class mean",
        source="Mensink et al. 2013; prototypes, arXiv 1703.05175",
        size="C * (T * D + 1)",
        swept={"temperature": "0.01, 0.03, 0.1, 0.3, 1 of the variance within classes"},
        kinds=(SINGLE_LABEL,),
    ),
    HeadInfo(
        name="ridge",
        factory=f"{_PACKAGE}.ridge:RidgeHead",
        fitting=CLOSED,
        default_layers="all",
        default_tokens=("cls", "ap"),
        summary="least squares with an L2 penalty, exact for all penalties at once",
        source="Hoerl and Kennard 1970; for classes as in arXiv 1912.11370",
        size="C * (T * D + 1)",
        swept={"penalty": "1 ... 1e-7 of the total variance"},
        kinds=(SINGLE_LABEL, MULTI_LABEL, REGRESSION),
    ),
    HeadInfo(
        name="lda",
        factory=f"{_PACKAGE}.lda:LdaHead",
        fitting=CLOSED,
        default_layers="all",
        default_tokens=("cls", "ap"),
        summary="linear discriminant analysis with a shrunk covariance",
        source="Fisher 1936; shrinkage, Friedman 1989",
        size="C * (T * D + 1)",
        swept={"shrinkage": "1, 0.5, 0.2, 0.1, ... 1e-5"},
        kinds=(SINGLE_LABEL,),
    ),
    HeadInfo(
        name="logreg",
        factory=f"{_PACKAGE}.linear:LinearHead",
        fitting=EXACT,
        default_layers="all",
        default_tokens=("cls", "ap"),
        summary="multinomial logistic regression, solved to a certified accuracy",
        source="Cox 1958; the solver is described in docs/design.md",
        size="C * (T * D + 1)",
        swept={"penalty": "13 values, 1e-1 ... 1e-7 of the total variance"},
        kinds=(SINGLE_LABEL,),
    ),
)

HEADS: dict[str, HeadInfo] = {info.name: info for info in _ENTRIES}


def get_head(name: str) -> HeadInfo:
    """Return the head called `name`.

    Raises:
        UnknownNameError: there is none.
    """
    if name not in HEADS:
        raise UnknownNameError("head", name, [info.name for info in _ENTRIES if info.listed])
    return HEADS[name]
