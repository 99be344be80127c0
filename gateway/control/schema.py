"""Owns the tables of control.db as SQLAlchemy sees them; `migrations` owns how they come to be.

Instants are UTC nanoseconds. Secrets are kept as HMAC-SHA256 digests only, with the version of the pepper they need.
"""

import sqlalchemy as sa

metadata = sa.MetaData()

tenant = sa.Table(
    "tenant",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("zone", sa.Text, nullable=False),
    sa.Column("currency", sa.Text, nullable=False),
    sa.Column("is_suspended", sa.Boolean, nullable=False),
    sa.Column("created_ns", sa.BigInteger, nullable=False),
)

#: One row per version, never updated: `body` is the canonical JSON of a `gateway.snapshot.Plan`.
plan_version = sa.Table(
    "plan_version",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("created_ns", sa.BigInteger, nullable=False),
)

#: The money of a plan version: canonical JSON of a `billing.plans.PlanTerms`, or NULL for list prices only.
plan_terms = sa.Table(
    "plan_terms",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("body", sa.Text),
    sa.Column("created_ns", sa.BigInteger, nullable=False),
)

#: Append-only: the plan and the number of QPS packs of a tenant from `since_ns` until the next row's.
agreement = sa.Table(
    "agreement",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("n", sa.Integer, primary_key=True),
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("packs", sa.Integer, nullable=False),
    sa.Column("since_ns", sa.BigInteger, nullable=False),
)

#: Never updated: `body` is the canonical JSON of a `billing.coupons.Coupon`.
coupon = sa.Table(
    "coupon",
    metadata,
    sa.Column("code", sa.Text, primary_key=True),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("created_ns", sa.BigInteger, nullable=False),
)

api_key = sa.Table(
    "api_key",
    metadata,
    sa.Column("key_id", sa.Text, primary_key=True),
    sa.Column("kid", sa.Text, nullable=False, unique=True),
    sa.Column("tenant", sa.Text, nullable=False, index=True),
    sa.Column("name", sa.Text, nullable=False),
    #: JSON list of scope names, and JSON list of model names or NULL for every model.
    sa.Column("scopes", sa.Text, nullable=False),
    sa.Column("models", sa.Text),
    sa.Column("expires_ns", sa.BigInteger),
    sa.Column("revoked_ns", sa.BigInteger),
    #: The key that made this one; its rights bound this key's for ever.
    sa.Column("parent", sa.Text),
    sa.Column("created_ns", sa.BigInteger, nullable=False),
)

key_secret = sa.Table(
    "key_secret",
    metadata,
    sa.Column("secret_id", sa.Integer, primary_key=True),
    sa.Column("key_id", sa.Text, nullable=False, index=True),
    sa.Column("digest", sa.LargeBinary, nullable=False),
    sa.Column("pepper_version", sa.Integer, nullable=False),
    sa.Column("not_after_ns", sa.BigInteger),
    sa.Column("created_ns", sa.BigInteger, nullable=False),
)

#: What a rotation asked and answered (without its secret), so that its retry changes nothing. Ids are each key's own:
#: one space for all would tell a tenant which ids others have used.
key_operation = sa.Table(
    "key_operation",
    metadata,
    sa.Column("key_id", sa.Text, primary_key=True),
    sa.Column("operation_id", sa.Text, primary_key=True),
    sa.Column("overlap_s", sa.Integer, nullable=False),
    sa.Column("not_after_ns", sa.BigInteger, nullable=False),
    sa.Column("created_ns", sa.BigInteger, nullable=False),
)

admin_token = sa.Table(
    "admin_token",
    metadata,
    sa.Column("token_id", sa.Integer, primary_key=True),
    sa.Column("digest", sa.LargeBinary, nullable=False),
    sa.Column("pepper_version", sa.Integer, nullable=False),
    sa.Column("is_bootstrap", sa.Boolean, nullable=False),
    sa.Column("created_ns", sa.BigInteger, nullable=False),
    sa.Column("expires_ns", sa.BigInteger),
    sa.Column("revoked_ns", sa.BigInteger),
)

price_book = sa.Table(
    "price_book",
    metadata,
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("created_ns", sa.BigInteger, nullable=False),
)

#: Append-only (triggers) and chained: `hash` covers the row and the hash before it.
audit = sa.Table(
    "audit",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("at_ns", sa.BigInteger, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("before", sa.Text),
    sa.Column("after", sa.Text),
    sa.Column("previous_hash", sa.LargeBinary, nullable=False),
    sa.Column("hash", sa.LargeBinary, nullable=False),
)

#: Named integers; `snapshot_version` is the version of the last policy committed.
counter = sa.Table(
    "counter",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
)

#: No secret: it follows from the pepper, the id and the generation. `cursor_seq` is the last event taken over.
webhook_endpoint = sa.Table(
    "webhook_endpoint",
    metadata,
    sa.Column("endpoint_id", sa.Text, primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False, index=True),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("events", sa.Text),
    sa.Column("generation", sa.Integer, nullable=False),
    sa.Column("pepper_version", sa.Integer, nullable=False),
    sa.Column("old_until_ns", sa.BigInteger),
    sa.Column("is_enabled", sa.Boolean, nullable=False),
    sa.Column("disabled_reason", sa.Text),
    sa.Column("failing_since_ns", sa.BigInteger),
    sa.Column("cursor_seq", sa.BigInteger, nullable=False),
    sa.Column("created_ns", sa.BigInteger, nullable=False),
)

webhook_delivery = sa.Table(
    "webhook_delivery",
    metadata,
    sa.Column("delivery_id", sa.Integer, primary_key=True),
    sa.Column("endpoint_id", sa.Text, nullable=False),
    sa.Column("event_seq", sa.BigInteger, nullable=False),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("next_ns", sa.BigInteger, nullable=False),
    sa.Column("created_ns", sa.BigInteger, nullable=False),
)

webhook_attempt = sa.Table(
    "webhook_attempt",
    metadata,
    sa.Column("delivery_id", sa.Integer, primary_key=True),
    sa.Column("n", sa.Integer, primary_key=True),
    sa.Column("at_ns", sa.BigInteger, nullable=False),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("took_ms", sa.Integer, nullable=False),
)
