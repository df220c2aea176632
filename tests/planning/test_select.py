"""Policies select what they say, combine as logic does, and print as the text they parse from."""

from __future__ import annotations

import pytest
from hypothesis import example, given, strategies as st
from torch import nn

import convsurgeon as cs
from convsurgeon.graph.site import Call, Site
from convsurgeon.planning.select import default_policy, resolve


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
        cs.select.everything(),
        cs.select.stem(),
        cs.select.named("layer1.*", "stem"),
        cs.select.kernel_size(3, (1, 5)),
        cs.select.stride(1, 2),
        cs.select.min_channels(32),
        cs.select.min_params(1000),
        cs.select.min_macs(1000),
        cs.select.min_share(0.123456789),
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
        (cs.select.everything(), [0, 1, 2, 3]),
        (cs.select.named("layer*"), [0, 1]),
        (cs.select.named("*.conv"), [0, 1, 2, 3]),
        (cs.select.named("layer1.0.conv1", "thin"), [0, 3]),
        (cs.select.named("layer"), []),
        (cs.select.kernel_size(3, 7), [0, 2]),
        (cs.select.kernel_size((1, 5)), [3]),
        (cs.select.stride(2), [1, 2]),
        (cs.select.min_channels(32), [0, 1]),
        (cs.select.min_params(19000), [1]),
        (cs.select.min_macs(5000), [0, 1]),
        (cs.select.min_share(0.05), [0, 1, 2]),
        (cs.select.stem(), [2]),
        (default_policy(), [0, 1, 3]),
        (cs.select.kernel_size(3) & (lambda site: site.macs > 1), [0]),
        ((lambda site: site.name == "stem") | cs.select.stride(1) & cs.select.min_channels(32), [0, 2]),
        (~(cs.select.stride(2) | cs.select.min_channels(17)), [3]),
    ],
)
def test_what_each_policy_selects(policy: cs.select.Policy, chosen: list[int]) -> None:
    assert [index for index, site in enumerate(SITES) if policy(site)] == chosen


@given(POLICIES)
@example(cs.select.stem() & (cs.select.everything() & ~~cs.select.stem()))
def test_a_policy_prints_as_it_parses(policy: cs.select.Policy) -> None:
    again = cs.select.parse(str(policy))
    assert again == policy
    assert [again(site) for site in SITES] == [policy(site) for site in SITES]


@given(POLICIES, POLICIES, st.sampled_from(SITES))
def test_the_logic_of_the_signs(one: cs.select.Policy, two: cs.select.Policy, site: Site) -> None:
    assert (one & two)(site) == (one(site) and two(site))
    assert (one | two)(site) == (one(site) or two(site))
    assert (~one)(site) == (not one(site))
    assert (~(one & two))(site) == (~one | ~two)(site)


@given(st.text(max_size=30) | st.text("()&|~, '\"named3x.*kernl_siz", max_size=30))
def test_any_text_parses_or_is_refused_in_one_line(text: str) -> None:
    try:
        policy = cs.select.parse(text)
    except cs.select.PolicyError as error:
        assert "\n" not in str(error) or "\n" in text
    else:
        assert cs.select.parse(str(policy)) == policy


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "''"),
        ("kernel(3)", "unknown test 'kernel'; did you mean kernel_size"),
        ("kernel_size(3", "kernel_size"),
        ("kernel_size(3) &", "kernel_size"),
        ("min_channels(a)", "'a'"),
        ("min_channels()", "min_channels"),
        ("named()", "named"),
        ("$", r"'\$'"),
        ("stem stem", "stem stem"),
        ("stem - stem", "'-'"),
        ("stem(stem)(3)", "'3'"),
        ("not stem", "not stem"),
        ("(" * 5000, "nested"),
        ("~" * 100000 + "stem", "nested"),
        ("kernel_size(3x3x3)", "kernel_size"),
        ("min_share(2)", "2"),
        ("stride()", "stride"),
        ("min_macs(-1)", "-1"),
        ("kernel_size(" + "9" * 5000 + ")", "999"),
        ("kernel_size(3x" + "9" * 5000 + ")", "999"),
    ],
)
def test_bad_text_is_refused(text: str, named: str) -> None:
    with pytest.raises(cs.select.PolicyError, match=named):
        cs.select.parse(text)


@pytest.mark.parametrize(
    ("policy", "taken"),
    [
        (None, False),
        (cs.select.min_channels(1), False),
        (~cs.select.named("thin"), False),
        (lambda _: True, False),
        (cs.select.named("st*"), False),
        (cs.select.named("stem") & cs.select.stride(2), True),
        (cs.select.everything() & cs.select.stride(2), True),
        (cs.select.stem() | cs.select.stride(1), True),
    ],
)
def test_the_stem_stays_out_unless_it_is_asked_for(policy: cs.select.Policy | None, taken: bool) -> None:
    chosen, _ = resolve(policy, SITES)
    assert chosen(SITES[2]) == taken
    if policy is None or isinstance(policy, cs.select.Policy):
        assert cs.select.parse(str(chosen)) == chosen


def test_names_are_demands_only_where_they_are_exact_and_positive() -> None:
    policy = cs.select.named("stem", "layer*") & ~cs.select.named("thin") | ~(
        cs.select.everything() & ~cs.select.named("alias.conv")
    )
    assert resolve(policy, SITES)[1] == {"stem", "alias.conv"}


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (cs.select.named("layer1.0.conv"), "no conv is named 'layer1.0.conv'; did you mean layer1.0.conv1"),
        (~cs.select.named("zzz*"), r"no conv is named 'zzz\*'; run inspect"),
        (cs.select.named("stem") & cs.select.named("sten"), "did you mean stem"),
    ],
)
def test_misspelt_names_suggest_the_nearest(policy: cs.select.Policy, message: str) -> None:
    with pytest.raises(cs.select.PolicyError, match=message):
        resolve(policy, SITES)


def test_what_is_no_policy_is_refused() -> None:
    with pytest.raises(cs.select.PolicyError, match="expected a policy or a function of a site, got int"):
        cs.plan(nn.Sequential(nn.Conv2d(8, 8, 3)), __import__("torch").zeros(1, 8, 4, 4), policy=3)
