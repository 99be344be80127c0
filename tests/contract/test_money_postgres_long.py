"""All tests of invoices, fees, coupons, rated months and recognition that take an office, over PostgreSQL."""

from typing import Any

import pytest

from tests.contract.test_money_postgres import office  # noqa: F401
from tests.unit.billing import test_settlement
from tests.unit.billing.invoices import test_fee_coupons, test_gathering, test_invoices, test_subscriptions
from tests.unit.billing.invoices.test_gathering import small  # noqa: F401
from tests.unit.billing.recognition import test_recognition

pytestmark = pytest.mark.long
#: These look for SQLite's words.
_OTHER_WORDS = {
    "test_tables_of_a_newer_release_are_refused",
    "test_a_grant_is_made_once_and_never_burns_more_than_was_granted",
    "test_a_finalized_invoice_and_what_belongs_to_it_cannot_be_changed",
}


def _takes_an_office(test: Any) -> bool:
    code = getattr(test, "__code__", None)
    return code is not None and "office" in code.co_varnames[: code.co_argcount]


for _module in (test_fee_coupons, test_gathering, test_invoices, test_subscriptions, test_settlement, test_recognition):
    for _name, _test in vars(_module).items():
        if _name.startswith("test_") and _name not in _OTHER_WORDS and _takes_an_office(_test):
            globals()[f"{_name}__{_module.__name__.rsplit('.', 1)[1]}"] = _test
