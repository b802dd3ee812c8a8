"""The laws of headforce, for what this package registers."""

from headforce.testing import check_policy_op, check_score


def test_the_operator():
    check_policy_op("ema_sink")


def test_the_score():
    check_score("key_norm")
