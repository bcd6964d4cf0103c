"""The tables. One generic `resource` table, so that a new kind needs no migration; typed ones where the database
must defend something. Bodies are JSON text: they can be read with any SQL shell.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

METADATA = MetaData()

resource = Table(
    "resource",
    METADATA,
    Column("id", String(40), primary_key=True),
    Column("kind", String(32), nullable=False),
    Column("project", String(63), nullable=False),
    Column("name", String(63), nullable=False),
    Column("labels", Text, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("observed_generation", Integer, nullable=False),
    Column("spec", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("owner", String(40)),
    Column("created_at", Float, nullable=False),
    Column("deleted_at", Float),
    Column("revision", BigInteger, nullable=False, index=True),
    Column("counts", Text, nullable=False, server_default=text("'{}'")),
    UniqueConstraint("kind", "project", "name", name="one_name"),
)

quota = Table(
    "quota",
    METADATA,
    Column("account", String(80), primary_key=True),
    Column("counter", String(32), primary_key=True),
    Column("used", BigInteger, nullable=False),
    Column("ceiling", BigInteger),
    Column("parent", String(80), nullable=False),
    CheckConstraint("used >= 0", name="never_below_nothing"),
)

placement = Table(
    "placement",
    METADATA,
    Column("owner", String(40), primary_key=True),
    Column("host", String(40), nullable=False, index=True),
    Column("vcpus", Integer, nullable=False),
    Column("memory_mib", Integer, nullable=False),
    Column("disk_gib", Integer, nullable=False),
)

capacity = Table(
    "capacity",
    METADATA,
    Column("host", String(40), primary_key=True),
    Column("vcpus", Integer, nullable=False),
    Column("memory_mib", Integer, nullable=False),
    Column("disk_gib", Integer, nullable=False),
    Column("vcpus_used", Integer, nullable=False),
    Column("memory_mib_used", Integer, nullable=False),
    Column("disk_gib_used", Integer, nullable=False),
    Column("traits", Text, nullable=False, server_default=text("'{}'")),
)

membership = Table(
    "membership",
    METADATA,
    Column("group_id", String(40), primary_key=True),
    Column("owner", String(40), primary_key=True, index=True),
    Column("domain", String(40), nullable=False),
    Column("apart", String(40)),
    UniqueConstraint("group_id", "apart", name="one_member_a_place"),
)
"""`apart`: the place that no other member of the group may have; none where the rule is no hard anti-affinity."""

meeting = Table(
    "meeting",
    METADATA,
    Column("group_id", String(40), primary_key=True),
    Column("domain", String(40), nullable=False),
)
"""The one place of a group of hard affinity that has members."""

zone_use = Table(
    "zone_use",
    METADATA,
    Column("zone", String(40), primary_key=True),
    Column("controller", String(40), primary_key=True),
    Column("revision", BigInteger, nullable=False),
)

address = Table(
    "address",
    METADATA,
    Column("network", String(40), primary_key=True),
    Column("offset", Integer, primary_key=True),
    Column("address", String(45), nullable=False),
    Column("vm", String(40), nullable=False),
    Column("index", Integer, nullable=False),
    Column("mac", String(17), nullable=False),
    UniqueConstraint("vm", "index", name="one_address_a_nic"),
)

vni = Table(
    "vni",
    METADATA,
    Column("network", String(40), primary_key=True),
    Column("vni", Integer, nullable=False, unique=True),
)

document = Table(
    "document",
    METADATA,
    Column("host", String(40), primary_key=True),
    Column("key", String(64), primary_key=True),
    Column("owner", String(40), nullable=False, index=True),
    Column("body", Text, nullable=False),
    Column("gone", Boolean, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("request", String(64), nullable=False, server_default=text("''")),
)

operation = Table(
    "operation",
    METADATA,
    Column("id", String(40), primary_key=True),
    Column("resource", String(40), nullable=False, index=True),
    Column("finished_at", Float, index=True),
    Column("body", Text, nullable=False),
    Column("revision", BigInteger, nullable=False),
)

event = Table(
    "event",
    METADATA,
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False),
    Column("actor", String(128), nullable=False),
    Column("request", String(64), nullable=False),
    Column("action", String(64), nullable=False),
    Column("kind", String(32), nullable=False),
    Column("resource", String(40), nullable=False),
    Column("project", String(63), nullable=False),
    Column("name", String(63), nullable=False),
    Column("message", Text, nullable=False),
    Column("before", Text, nullable=False),
    Column("after", Text, nullable=False),
    Column("result", String(16), nullable=False, server_default=text("''")),
    Column("hash", String(64), nullable=False, server_default=text("''")),
    Index("event_of_project", "project", "seq"),
    Index("event_of_resource", "resource", "seq"),
    Index("event_of_request", "request"),
    sqlite_autoincrement=True,
)

chain = Table(
    "chain",
    METADATA,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("hash", String(64), nullable=False),
)

token = Table(
    "token",
    METADATA,
    Column("digest", String(64), primary_key=True),
    Column("resource", String(40), nullable=False, index=True),
    Column("expires_at", Float, nullable=False),
)

password = Table(
    "password",
    METADATA,
    Column("user", String(40), primary_key=True),
    Column("hash", String(255), nullable=False),
)

enrolment = Table(
    "enrolment",
    METADATA,
    Column("host", String(40), primary_key=True),
    Column("join_digest", String(64), nullable=False),
    Column("body", Text, nullable=False),
)

queue = Table(
    "queue",
    METADATA,
    Column("resource", String(40), primary_key=True),
    Column("due_at", Float, nullable=False, index=True),
    Column("pokes", Integer, nullable=False),
    Column("leased_by", String(40)),
    Column("leased_until", Float, nullable=False),
)

grave = Table(
    "grave",
    METADATA,
    Column("id", String(40), primary_key=True),
    Column("kind", String(32), nullable=False),
    Column("project", String(63), nullable=False),
    Column("name", String(63), nullable=False),
    Column("public", Boolean, nullable=False),
    Column("revision", BigInteger, primary_key=True, autoincrement=False, index=True),
    Column("domain", String(40), nullable=False, server_default=text("''")),
)

repeat = Table(
    "repeat",
    METADATA,
    Column("caller", String(128), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("fingerprint", String(64), nullable=False),
    Column("at", Float, nullable=False, index=True),
    Column("body", Text, nullable=False),
)

sequence = Table(
    "sequence",
    METADATA,
    Column("name", String(32), primary_key=True),
    Column("value", BigInteger, nullable=False),
)

controller = Table(
    "controller",
    METADATA,
    Column("id", String(40), primary_key=True),
    Column("url", String(255), nullable=False),
    Column("version", String(64), nullable=False),
    Column("since", Float, nullable=False),
    Column("alive", Boolean, nullable=False),
    Column("alive_until", Float, nullable=False),
)

link = Table(
    "link",
    METADATA,
    Column("host", String(40), primary_key=True),
    Column("controller", String(40), nullable=False, index=True),
    Column("since", Float, nullable=False),
)

change = Table(
    "change",
    METADATA,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("at", Float, nullable=False),
    Column("mark", String(32), nullable=False),
    Column("body", Text, nullable=False),
)

fact = Table(
    "fact",
    METADATA,
    Column("name", String(32), primary_key=True),
    Column("value", Text, nullable=False),
)
