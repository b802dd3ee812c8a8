"""The laws of headforce, for what this package registers."""

from headforce.testing import check_policy_op, check_target


def test_the_operator():
    check_policy_op("dilated_window")


def test_the_target():
    check_target("by_head", examples=12)
