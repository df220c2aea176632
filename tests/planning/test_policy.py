"""Policies select what they say, combine as logic does, and print as the text they parse from."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

import convsurgeon as cs
from convsurgeon.graph.site import Call, Site
from convsurgeon.planning.policy import check_names, default_policy


def _site(name: str = "layer1.0.conv1", conv: nn.Conv2d | None = None, macs: int = 5000, share: float = 0.25) -> Site:
    geometry = cs.Geometry.of(conv or nn.Conv2d(32, 64, 3, padding=1))
    call = Call((1, geometry.in_channels, 8, 8), (1, geometry.out_channels, 8, 8))
    figures = (geometry, (call,), geometry.params, macs, share)
    return Site(name, ("alias.conv",), "Conv2d", *figures, obstacle="", reads_input=name == "stem")


SITES = [
    _site(),
    _site("layer4.1.conv2", nn.Conv2d(64, 64, 5, stride=2), 70000, 0.5),
    _site("stem", nn.Conv2d(3, 64, 7, stride=2), 900, 0.05),
    _site("thin", nn.Conv2d(16, 16, (1, 5), groups=16), 10, 0.0),
]
LEAVES = st.sampled_from(
    [
        cs.everything(),
        cs.stem(),
        cs.named("layer1.*", "stem"),
        cs.kernel_size(3, (1, 5)),
        cs.stride(1, 2),
        cs.min_channels(32),
        cs.min_params(1000),
        cs.min_macs(1000),
        cs.min_share(0.123456789),
    ]
)
POLICIES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(lambda a, b: a & b, inner, inner),
        st.builds(lambda a, b: a | b, inner, inner),
        st.builds(lambda a: ~a, inner),
    ),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("policy", "chosen"),
    [
        (cs.everything(), [0, 1, 2, 3]),
        (cs.named("layer*"), [0, 1]),
        (cs.named("*.conv"), [0, 1, 2, 3]),
        (cs.named("layer1.0.conv1", "thin"), [0, 3]),
        (cs.named("layer"), []),
        (cs.kernel_size(3, 7), [0, 2]),
        (cs.kernel_size((1, 5)), [3]),
        (cs.stride(2), [1, 2]),
        (cs.min_channels(32), [0, 1]),
        (cs.min_params(19000), [1]),
        (cs.min_macs(5000), [0, 1]),
        (cs.min_share(0.05), [0, 1, 2]),
        (cs.stem(), [2]),
        (default_policy(), [0, 1, 3]),
        (cs.kernel_size(3) & (lambda site: site.macs > 1), [0]),
        ((lambda site: site.name == "stem") | cs.stride(1) & cs.min_channels(32), [0, 2]),
        (~(cs.stride(2) | cs.min_channels(17)), [3]),
    ],
)
def test_what_each_policy_selects(policy: cs.Policy, chosen: list[int]) -> None:
    assert [index for index, site in enumerate(SITES) if policy(site)] == chosen


@given(POLICIES)
@example(cs.stem() & (cs.everything() & ~~cs.stem()))
def test_a_policy_prints_as_it_parses(policy: cs.Policy) -> None:
    again = cs.parse_policy(str(policy))
    assert again == policy
    assert [again(site) for site in SITES] == [policy(site) for site in SITES]


@given(POLICIES, POLICIES, st.sampled_from(SITES))
def test_the_logic_of_the_signs(one: cs.Policy, two: cs.Policy, site: Site) -> None:
    assert (one & two)(site) == (one(site) and two(site))
    assert (one | two)(site) == (one(site) or two(site))
    assert (~one)(site) == (not one(site))
    assert (~(one & two))(site) == (~one | ~two)(site)


@given(st.text(max_size=30) | st.text("()&|~, '\"named3x.*kernl_siz", max_size=30))
def test_any_text_parses_or_is_refused_in_one_line(text: str) -> None:
    try:
        policy = cs.parse_policy(text)
    except cs.PolicyError as error:
        assert "\n" not in str(error) or "\n" in text
    else:
        assert cs.parse_policy(str(policy)) == policy


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a test such as"),
        ("kernel(3)", "unknown test 'kernel'; did you mean kernel_size"),
        ("kernel_size(3", r"expected '\)', found the end"),
        ("kernel_size(3) &", "expected a test such as kernel_size"),
        ("min_channels(a)", "'a' is no number"),
        ("min_channels()", "min_channels does not take 0 values"),
        ("named()", "named: no name given"),
        ("$", r"unexpected '\$'"),
        ("stem stem", "unexpected 'stem'"),
        ("(" * 5000, "nested too deeply"),
        ("kernel_size(3x3x3)", "is no window"),
        ("min_share(2)", "a share lies between 0 and 1, got 2"),
        ("stride()", "stride: no step given"),
        ("min_macs(-1)", "expected a whole number, got -1"),
    ],
)
def test_bad_text_is_refused_with_the_place(text: str, message: str) -> None:
    with pytest.raises(cs.PolicyError, match=message):
        cs.parse_policy(text)


def test_names_are_demands_only_where_they_are_exact_and_positive() -> None:
    policy = cs.named("stem", "layer*") & ~cs.named("thin") | ~(cs.everything() & ~cs.named("alias.conv"))
    assert check_names(policy, SITES) == {"stem", "alias.conv"}


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (cs.named("layer1.0.conv"), "no conv is named 'layer1.0.conv'; did you mean layer1.0.conv1"),
        (~cs.named("zzz*"), r"no conv is named 'zzz\*'; run inspect"),
        (cs.named("stem") & cs.named("sten"), "did you mean stem"),
    ],
)
def test_misspelt_names_suggest_the_nearest(policy: cs.Policy, message: str) -> None:
    with pytest.raises(cs.PolicyError, match=message):
        check_names(policy, SITES)


def test_what_is_no_policy_is_refused() -> None:
    with pytest.raises(cs.PolicyError, match="expected a policy or a function of a site, got int"):
        cs.plan(nn.Sequential(nn.Conv2d(8, 8, 3)), __import__("torch").zeros(1, 8, 4, 4), policy=3)


@pytest.mark.parametrize("text", ["9" * 5000, "3x" + "9" * 5000])
def test_a_number_of_thousands_of_digits_is_refused(text: str) -> None:
    with pytest.raises(cs.PolicyError, match=r"is no number"):
        cs.parse_policy(f"kernel_size({text})")
