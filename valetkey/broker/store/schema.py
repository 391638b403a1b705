"""The broker's tables, once, for every SQL database. Times are seconds since the epoch."""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    text,
)

METADATA: Final = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# `sealed` is nonce and AES-256-GCM ciphertext of the PKCS #8 key; the kid is bound to it as AAD.
SIGNING_KEYS: Final = Table(
    "signing_keys",
    METADATA,
    Column("kid", String(64), primary_key=True),
    Column("sealed", LargeBinary, nullable=False),
    Column("public_jwk", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("signs_from", Float, nullable=False),
    Column("longest_ttl", Float, nullable=False),
)

# Where this database is (`store.home`): one row.
HOME: Final = Table(
    "home",
    METADATA,
    Column("only", Integer, primary_key=True, autoincrement=False),
    Column("place", String(128), nullable=False),
    Column("since", Float, nullable=False),
)

# What no longer counts, by kind (`store.revocations`). `issued_before` is set where only tokens
# that were issued up to then are refused, and new ones may be had.
REVOCATIONS: Final = Table(
    "revocations",
    METADATA,
    Column("kind", String(16), primary_key=True),
    Column("value", String(512), primary_key=True),
    Column("revoked_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("issued_before", Float, nullable=True),
    Index(None, "expires_at"),
)

# `id` is a digest of issuer and jti of a self-signed client assertion.
USED_ASSERTIONS: Final = Table(
    "used_assertions",
    METADATA,
    Column("id", LargeBinary(32), primary_key=True),
    Column("expires_at", Float, nullable=False),
    Index(None, "expires_at"),
)

# SQLite numbers rows by itself only where the key is its own INTEGER.
_SEQUENCE: Final = BigInteger().with_variant(Integer, "sqlite")

# What changed, in the order of the commits: see `store.changes`.
CHANGES: Final = Table(
    "changes",
    METADATA,
    Column("seq", _SEQUENCE, primary_key=True, autoincrement=True),
    Column("topic", String(32), nullable=False),
    Column("key", String(512), nullable=False),
    Column("at", Float, nullable=False),
    sqlite_autoincrement=True,  # a number is never given twice, whatever was deleted
)

# A subject's revocation counter: tokens and cached credentials of an older epoch do not count.
EPOCHS: Final = Table(
    "epochs",
    METADATA,
    Column("issuer", String(512), primary_key=True),
    Column("subject", String(1024), primary_key=True),
    Column("epoch", BigInteger, nullable=False),
    Column("bumped_at", Float, nullable=False),
    Column("reason", String(256), nullable=False),
    # Identity tokens and keys from up to then attest nothing any more; 0 where none is asked for.
    Column("attest_after", Float, nullable=False, server_default=text("0")),
)

# Which key a subject showed, and since when: `id` is a digest of issuer, subject and key.
SEEN_KEYS: Final = Table(
    "seen_keys",
    METADATA,
    Column("id", LargeBinary(32), primary_key=True),
    Column("first_seen", Float, nullable=False),
    Column("last_seen", Float, nullable=False),
    Index(None, "last_seen"),
)

# What each transmitter (`source`) says of the risk of a subject, as the principal that it means.
SUBJECT_RISKS: Final = Table(
    "subject_risks",
    METADATA,
    Column("issuer", String(512), primary_key=True),
    Column("subject", String(1024), primary_key=True),
    Column("source", String(64), primary_key=True),
    Column("principal", String(16), primary_key=True),
    Column("level", String(8), nullable=False),
    Column("seen_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Index(None, "expires_at"),
)

# What administrators did, chained: `hash` covers the row and the hash before it.
ADMIN_ACTIONS: Final = Table(
    "admin_actions",
    METADATA,
    Column("seq", _SEQUENCE, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False),
    Column("actor", String(1024), nullable=False),
    Column("actor_issuer", String(512), nullable=False),
    Column("action", String(64), nullable=False),
    Column("subject", String(1024), nullable=False),
    Column("reason", Text, nullable=False),
    Column("details", Text, nullable=False),
    Column("hash", String(64), nullable=False),
    sqlite_autoincrement=True,
)

# What has ended, in the order of the commits: see `store.signals`. `stream` is empty for what
# concerns everybody; `kind` is one of a Signal, or verification or stream-updated.
SIGNALS: Final = Table(
    "signals",
    METADATA,
    Column("seq", _SEQUENCE, primary_key=True, autoincrement=True),
    Column("jti", String(64), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("value", String(2048), nullable=False),
    Column("issuer", String(512), nullable=False),
    Column("txn", String(256), nullable=False),
    Column("reason", Text, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("at", Float, nullable=False),
    Column("published_at", Float, nullable=False),
    Column("stream", String(64), nullable=False),
    Index(None, "jti", unique=True),
    Index(None, "txn"),
    sqlite_autoincrement=True,
)

# Who follows the signals, and how far: all up to `position` are acknowledged. `start` is where the
# stream began, `owner_key` the proof key that it is bound to (empty: none). `push_authorization` is
# sealed. `lease` says which replica pushes, until when.
FEED_STREAMS: Final = Table(
    "feed_streams",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("owner_issuer", String(512), nullable=False),
    Column("owner_subject", String(1024), nullable=False),
    Column("owner_key", String(64), nullable=False),
    Column("description", String(256), nullable=False),
    Column("events_requested", Text, nullable=False),
    Column("excluded", Text, nullable=False),
    Column("status", String(16), nullable=False),
    Column("status_reason", String(256), nullable=False),
    Column("push_url", String(2048), nullable=False),
    Column("push_authorization", LargeBinary, nullable=True),
    Column("start", BigInteger, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("contacted_at", Float, nullable=False),
    Column("lease", String(64), nullable=False),
    Column("lease_until", Float, nullable=False),
    Index(None, "owner_issuer", "owner_subject"),
    Index(None, "contacted_at"),
)

# When a stream acknowledged a signal that something waits for (one with a `txn`).
SIGNAL_ACKS: Final = Table(
    "signal_acks",
    METADATA,
    Column("seq", BigInteger, primary_key=True),
    Column("stream", String(64), primary_key=True),
    Column("at", Float, nullable=False),
)

# Users and groups that provisioning clients write (SCIM). `name` is userName or displayName,
# `name_key` what it is compared by; `document` the attributes without a column, as JSON.
SCIM_RESOURCES: Final = Table(
    "scim_resources",
    METADATA,
    Column("id", String(36), primary_key=True),
    Column("kind", String(5), nullable=False),
    Column("name", String(512), nullable=False),
    Column("name_key", String(1024), nullable=False),
    Column("external_id", String(512), nullable=True),
    Column("active", Boolean, nullable=False),
    Column("document", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("modified_at", Float, nullable=False),
    Index(None, "kind", "name_key", unique=True),
    Index(None, "kind", "external_id", unique=True),
    Index(None, "kind", "created_at", "id"),
)

# Whose tokens a user came with, where the user is found by another claim than `sub`; `value` is
# what the claim was.
SCIM_SUBJECTS: Final = Table(
    "scim_subjects",
    METADATA,
    Column("user_id", String(36), primary_key=True),
    Column("issuer", String(512), primary_key=True),
    Column("subject", String(1024), primary_key=True),
    Column("value", String(512), nullable=False, server_default=text("''")),
    Column("noted_at", Float, nullable=False, server_default=text("0")),
    Index(None, "noted_at"),
)

# Tokens with a place in a status list; `claims` are those that decide whether they count.
STATUS_ENTRIES: Final = Table(
    "status_entries",
    METADATA,
    Column("list", String(16), primary_key=True),
    Column("idx", Integer, primary_key=True, autoincrement=False),
    Column("kid", String(64), nullable=False),
    Column("hashed", String(64), nullable=False),
    Column("claims", Text, nullable=False),
    Column("expires_at", Float, nullable=False),
    Index(None, "expires_at"),
)

# Who is in which group: users and groups.
SCIM_MEMBERS: Final = Table(
    "scim_members",
    METADATA,
    Column("group_id", String(36), primary_key=True),
    Column("member_id", String(36), primary_key=True),
    Index(None, "member_id"),
)

# What somebody has asked people to approve, and what became of it: see `core.approvals`.
# `open_digest` is the digest while people can still decide: its uniqueness merges equal requests.
APPROVALS: Final = Table(
    "approvals",
    METADATA,
    Column("id", String(40), primary_key=True),
    Column("digest", String(43), nullable=False),
    Column("open_digest", String(43), nullable=True),
    Column("client_issuer", String(512), nullable=False),
    Column("client_subject", String(1024), nullable=False),
    Column("request", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("opened_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("valid", Float, nullable=False),
    Column("decision", String(8), nullable=False),
    Column("uses_left", Integer, nullable=True),
    Column("used", Integer, nullable=False),
    Column("until", Float, nullable=False),
    Column("decided_at", Float, nullable=False),
    Index(None, "open_digest", unique=True),
    Index(None, "digest"),
    Index(None, "opened_at"),
)

# One word per approver, kept to the end of the approval.
APPROVAL_VOTES: Final = Table(
    "approval_votes",
    METADATA,
    Column("approval", String(40), primary_key=True),
    Column("issuer", String(512), primary_key=True),
    Column("subject", String(1024), primary_key=True),
    Column("approves", Boolean, nullable=False),
    Column("reason", Text, nullable=False),
    Column("at", Float, nullable=False),
    Column("uses", Integer, nullable=True),
    Column("until", Float, nullable=False),
)

# Deferral codes by their SHA-256. `request` is what was verified when it was asked (no token),
# sealed: it is judged again when the code is redeemed.
DEFERRALS: Final = Table(
    "deferrals",
    METADATA,
    Column("id", LargeBinary(32), primary_key=True),
    Column("approval", String(40), nullable=False),
    Column("client_issuer", String(512), nullable=False),
    Column("client_subject", String(1024), nullable=False),
    Column("thumbprint", String(64), nullable=False),
    Column("request", LargeBinary, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("interval", Float, nullable=False),
    Column("polled_at", Float, nullable=False),
    Column("redeemed_at", Float, nullable=True),
    Index(None, "expires_at"),
)

# What people are still to be told, one row for each place: deleted once it was delivered.
NOTICES: Final = Table(
    "notices",
    METADATA,
    Column("id", String(40), primary_key=True),
    Column("channel", String(64), nullable=False),
    Column("body", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("due_at", Float, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("claimed_until", Float, nullable=False),
    Index(None, "due_at"),
)

# Grants made by API. `document` is the grant as written, in one form; the columns beside it are
# what is searched for. `ended_at` is set when it was revoked.
GRANTS: Final = Table(
    "grants",
    METADATA,
    Column("id", String(128), primary_key=True),
    Column("document", Text, nullable=False),
    Column("workload", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("not_before", Float, nullable=True),
    Column("not_after", Float, nullable=True),
    Column("max_uses", BigInteger, nullable=True),
    Column("created_at", Float, nullable=False),
    Column("created_by", String(1024), nullable=False),
    Column("created_by_issuer", String(512), nullable=False),
    Column("ended_at", Float, nullable=True),
    Column("ended_by", String(1024), nullable=False),
    Column("ended_by_issuer", String(512), nullable=False),
    Column("ended_reason", Text, nullable=False),
)

# Grants as they last stood in the grants file, without what is only for people; `gone_at` is when
# one was seen to have left it (`store.file_grants`).
FILE_GRANTS: Final = Table(
    "file_grants",
    METADATA,
    Column("id", String(128), primary_key=True),
    Column("document", Text, nullable=False),
    Column("recorded_at", Float, nullable=False),
    Column("gone_at", Float, nullable=True),
)

# How many tokens were minted under a grant that counts them, of the file or made by API.
GRANT_USES: Final = Table(
    "grant_uses",
    METADATA,
    Column("grant_id", String(128), primary_key=True),
    Column("uses", BigInteger, nullable=False),
    Column("used_at", Float, nullable=False),
)

# Deployment windows. `announcement` is a digest of grant and token: each token opens one window of
# a grant. `closed_at` is set when it was closed, at the latest some time after its deadline.
WINDOWS: Final = Table(
    "windows",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("grant_id", String(128), nullable=False),
    Column("announcement", LargeBinary(32), nullable=False),
    Column("opened_at", Float, nullable=False),
    Column("deadline", Float, nullable=False),
    Column("opened_by", String(1024), nullable=False),
    Column("opened_by_issuer", String(512), nullable=False),
    Column("closed_at", Float, nullable=True),
    Column("closed_by", String(1024), nullable=False),
    Column("closed_by_issuer", String(512), nullable=False),
    Column("closed_reason", Text, nullable=False),
    Index(None, "announcement", unique=True),
    Index(None, "grant_id"),
    Index(None, "deadline"),
)

# Incidents (`core.incidents.Incident`). `open_key` is a digest of what an open one is about, so
# that there is one of it; none once it is closed.
INCIDENTS: Final = Table(
    "incidents",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("value", String(1024), nullable=False),
    Column("issuer", String(512), nullable=False),
    Column("subject_issuer", String(512), nullable=False),
    Column("subject", String(1024), nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("source", String(128), nullable=False),
    Column("reason", Text, nullable=False),
    Column("evidence", Text, nullable=False),
    Column("opened_at", Float, nullable=False),
    Column("opened_by", Text, nullable=False),
    Column("renewed_at", Float, nullable=False),
    Column("contained_at", Float, nullable=True),
    Column("attested_at", Float, nullable=True),
    Column("closed_at", Float, nullable=True),
    Column("closed_by", Text, nullable=False),
    Column("close_reason", Text, nullable=False),
    Column("forced", Boolean, nullable=False),
    Column("open_key", LargeBinary(32), nullable=True),
    Index("ux_incidents_open_key", "open_key", unique=True),
    Index(None, "opened_at"),
)

# What issuers were asked to replace because of an incident; `next_at` is when it is due.
INCIDENT_ROTATIONS: Final = Table(
    "incident_rotations",
    METADATA,
    Column("incident", String(64), primary_key=True),
    Column("rotator", String(64), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("detail", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("at", Float, nullable=False),
    Column("next_at", Float, nullable=False),
)
