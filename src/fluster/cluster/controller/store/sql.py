"""All SQL of the store: the schema as numbered migrations, and every statement.

Rows are written by upserts, one per kind of row, built from its columns. A row's key and its indexed columns never
change, so upserts leave them alone: SQLite rewrites an index entry whenever a statement merely names its columns.
"""

from __future__ import annotations

APPLICATION_ID = 0x466C7573
"""In the header of the file: whose database it is. "Flus"."""

_V1 = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO meta VALUES ('epoch', 0), ('journal_seq', 0);

CREATE TABLE jobs (
  job_id TEXT PRIMARY KEY,
  name TEXT NOT NULL,
  namespace TEXT NOT NULL,
  owner TEXT NOT NULL,
  parent TEXT,
  depth INTEGER NOT NULL,
  priority INTEGER NOT NULL,
  num_tasks INTEGER NOT NULL,
  gang INTEGER NOT NULL,
  resources TEXT NOT NULL,
  slice_hosts INTEGER NOT NULL,
  retry TEXT NOT NULL,
  timeout_s REAL,
  scheduling_timeout_s REAL,
  ports TEXT NOT NULL,
  submitted_at REAL NOT NULL,
  stop_at REAL,
  stop_cause TEXT,
  stop_reason TEXT NOT NULL,
  outcome TEXT,
  finished_at REAL,
  decided_by INTEGER NOT NULL,
  cause TEXT,
  exit_code INTEGER,
  error_message TEXT NOT NULL
) STRICT;
-- Pages of jobs, newest first; holds what they are filtered by, so that a filter that fits nothing reads only this.
CREATE INDEX jobs_by_age ON jobs (submitted_at, job_id, namespace, outcome, name);
CREATE INDEX jobs_unfinished ON jobs (job_id) WHERE outcome IS NULL;
CREATE INDEX jobs_finished ON jobs (finished_at) WHERE outcome IS NOT NULL;

CREATE TABLE specs (job_id TEXT PRIMARY KEY, spec BLOB NOT NULL) STRICT;

CREATE TABLE tasks (
  job_id TEXT NOT NULL,
  "index" INTEGER NOT NULL,
  state TEXT NOT NULL,
  attempt INTEGER NOT NULL,
  not_before REAL NOT NULL,
  PRIMARY KEY (job_id, "index")
) STRICT, WITHOUT ROWID;

CREATE TABLE attempts (
  uid TEXT NOT NULL,
  job_id TEXT NOT NULL,
  task INTEGER NOT NULL,
  number INTEGER NOT NULL,
  worker_id TEXT NOT NULL,
  incarnation TEXT NOT NULL,
  placed_at REAL NOT NULL,
  state TEXT NOT NULL,
  observed INTEGER NOT NULL,
  started_at REAL,
  finished_at REAL,
  exit_code INTEGER,
  cause TEXT,
  error_message TEXT NOT NULL,
  peak_memory_bytes INTEGER NOT NULL,
  stop_cause TEXT,
  stop_reason TEXT NOT NULL,
  charge TEXT NOT NULL,
  master_port INTEGER NOT NULL,
  PRIMARY KEY (job_id, task, number)
) STRICT, WITHOUT ROWID;

CREATE TABLE results (
  uid TEXT PRIMARY KEY,
  inline BLOB,
  blob TEXT NOT NULL,
  sha256 TEXT NOT NULL
) STRICT;

CREATE TABLE workers (
  worker_id TEXT PRIMARY KEY,
  credential_sha256 TEXT NOT NULL,
  incarnation TEXT NOT NULL,
  address TEXT NOT NULL,
  advertise_host TEXT NOT NULL,
  host_id TEXT NOT NULL,
  allocation_id TEXT NOT NULL,
  resources TEXT NOT NULL,
  cgroup TEXT NOT NULL,
  joined_by TEXT NOT NULL,
  registered_at REAL NOT NULL,
  status TEXT NOT NULL
) STRICT;

CREATE TABLE allocations (
  allocation_id TEXT PRIMARY KEY,
  backend TEXT NOT NULL,
  resources TEXT NOT NULL,
  created_at REAL NOT NULL,
  status TEXT NOT NULL,
  hosts TEXT NOT NULL,
  error TEXT NOT NULL
) STRICT;

CREATE TABLE endpoints (
  endpoint_id TEXT PRIMARY KEY,
  name TEXT NOT NULL,
  namespace TEXT NOT NULL,
  address TEXT NOT NULL,
  owner TEXT NOT NULL,
  job_id TEXT,
  attempt_uid TEXT,
  registered_at REAL NOT NULL,
  metadata TEXT NOT NULL,
  access_key TEXT NOT NULL
) STRICT;

CREATE TABLE tokens (
  token_id TEXT PRIMARY KEY,
  sha256 TEXT NOT NULL,
  uses INTEGER NOT NULL,
  expires_at REAL NOT NULL,
  created_at REAL NOT NULL
) STRICT;

CREATE TABLE requests (
  caller TEXT NOT NULL,
  request_id TEXT NOT NULL,
  kind TEXT NOT NULL,
  body_sha256 TEXT NOT NULL,
  answer TEXT NOT NULL,
  at REAL NOT NULL,
  PRIMARY KEY (caller, request_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX requests_by_age ON requests (at);

CREATE TABLE journal (
  seq INTEGER PRIMARY KEY,
  at REAL NOT NULL,
  kind TEXT NOT NULL,
  actor TEXT NOT NULL,
  job_id TEXT NOT NULL,
  task INTEGER NOT NULL,
  attempt INTEGER NOT NULL,
  worker_id TEXT NOT NULL,
  message TEXT NOT NULL
) STRICT;
CREATE INDEX journal_by_job ON journal (job_id);
"""

_V2 = """
ALTER TABLE jobs ADD COLUMN user TEXT NOT NULL DEFAULT '';
ALTER TABLE tokens ADD COLUMN user TEXT NOT NULL DEFAULT '';
ALTER TABLE tokens ADD COLUMN namespace TEXT NOT NULL DEFAULT '';

CREATE TABLE users (name TEXT PRIMARY KEY, quota TEXT NOT NULL, created_at REAL NOT NULL) STRICT;

ALTER TABLE journal ADD COLUMN peer TEXT NOT NULL DEFAULT '';
-- Who asked for what: holds what it is filtered by.
CREATE INDEX journal_asked ON journal (seq, actor, job_id) WHERE peer <> '';
CREATE INDEX journal_refused ON journal (seq) WHERE kind = 'RequestRefused';
"""

MIGRATIONS = (_V1, _V2)
"""Migration n takes a database from version n to n + 1. Append only: databases out there have run them."""

SCHEMA_VERSION = len(MIGRATIONS)

NEXT_EPOCH = "UPDATE meta SET value = value + 1 WHERE key = 'epoch' RETURNING value"

UNFINISHED_JOBS = "SELECT {columns} FROM jobs WHERE outcome IS NULL ORDER BY submitted_at, job_id"
# CROSS JOIN keeps the order: from the few unfinished jobs to what is theirs, never through the whole history.
UNFINISHED_TASKS = """
SELECT {columns} FROM jobs j INDEXED BY jobs_unfinished CROSS JOIN tasks t ON t.job_id = j.job_id
WHERE j.outcome IS NULL ORDER BY t.job_id, t."index"
"""
UNFINISHED_ATTEMPTS = """
SELECT {columns} FROM jobs j INDEXED BY jobs_unfinished CROSS JOIN attempts t ON t.job_id = j.job_id
WHERE j.outcome IS NULL ORDER BY t.job_id, t.task, t.number
"""
WORKERS = """
SELECT {columns} FROM workers
WHERE status <> 'gone' OR joined_by IN (SELECT token_id FROM tokens) ORDER BY registered_at, worker_id
"""
ALLOCATIONS = "SELECT {columns} FROM allocations WHERE status <> 'gone' ORDER BY created_at, allocation_id"
ENDPOINTS = "SELECT {columns} FROM endpoints ORDER BY registered_at, endpoint_id"
TOKENS = "SELECT {columns} FROM tokens ORDER BY created_at, token_id"
USERS = "SELECT {columns} FROM users ORDER BY name"

SPEC = "SELECT spec FROM specs WHERE job_id = ?"
RESULT = "SELECT {columns} FROM results WHERE uid = ?"
REQUEST = "SELECT {columns} FROM requests WHERE caller = ? AND request_id = ?"
JOB = "SELECT {columns} FROM jobs WHERE job_id = ?"
TASKS = 'SELECT {columns} FROM tasks WHERE job_id = :job_id AND "index" BETWEEN :first AND :last ORDER BY "index"'
ATTEMPTS = """
SELECT {columns} FROM attempts WHERE job_id = :job_id AND task BETWEEN :first AND :last ORDER BY task, number
"""
STARTED_AT = """
SELECT min(a.started_at) FROM tasks t
CROSS JOIN attempts a ON a.job_id = t.job_id AND a.task = t."index" AND a.number = t.attempt
WHERE t.job_id = ?
"""

JOBS_FROM = "SELECT {columns} FROM jobs"
JOBS_PAGE = "ORDER BY submitted_at DESC, job_id DESC LIMIT :limit"
# Each is used when the caller gives its parameter.
JOBS_WHERE = {
    "namespace": "namespace = :namespace",
    "outcome": "outcome = :outcome",
    "finished": "outcome IS NOT NULL",
    "name": "name = :name",
    "name_from": "name >= :name_from",
    "name_to": "name < :name_to",
    "before_id": "(submitted_at, job_id) < (:before_at, :before_id)",
}

JOURNAL_FROM = "SELECT seq, {columns} FROM journal WHERE seq > :after_seq"
JOURNAL_PAGE = {False: "ORDER BY seq LIMIT :limit", True: "ORDER BY seq DESC LIMIT :limit"}  # newest or not
# Each is used when the caller gives its parameter.
JOURNAL_AND = {
    "job_id": "AND job_id = :job_id",
    "asked": "AND peer <> ''",
    "not_refused": "AND kind <> 'RequestRefused'",
    "actor": "AND actor = :actor",
    "user": """AND (actor = 'user:' || :user OR actor LIKE 'job:%' AND EXISTS
      (SELECT 1 FROM jobs WHERE jobs.job_id = substr(actor, 5) AND jobs.user = :user))""",
}
JOURNAL_TAIL = """
SELECT max((SELECT value FROM meta WHERE key = 'journal_seq'), (SELECT ifnull(max(seq), 0) FROM journal))
"""
JOURNAL_LAST_AT = "SELECT at FROM journal ORDER BY seq DESC LIMIT 1"
ADD_JOURNAL = "INSERT INTO journal (seq, {columns}) VALUES (?, {values})"

DELETE_ENDPOINT = "DELETE FROM endpoints WHERE endpoint_id = ?"
DELETE_TOKEN = "DELETE FROM tokens WHERE token_id = ?"

ALL_SPECS = "SELECT rowid, spec FROM specs WHERE rowid > ? ORDER BY rowid LIMIT ?"
RESULT_BLOBS = "SELECT DISTINCT blob FROM results WHERE blob <> ''"

# Numbers of the journal go on from here, so that none is given twice when the newest lines are removed.
KEEP_JOURNAL_SEQ = "UPDATE meta SET value = ? WHERE key = 'journal_seq'"
FINISHED_COUNT = "SELECT count(*) FROM jobs INDEXED BY jobs_finished WHERE outcome IS NOT NULL"
OLDEST_FINISHED = """
SELECT job_id, finished_at FROM jobs INDEXED BY jobs_finished WHERE outcome IS NOT NULL ORDER BY finished_at LIMIT ?
"""
DELETE_JOB = (
    "DELETE FROM results WHERE uid IN (SELECT uid FROM attempts WHERE job_id = ?)",
    "DELETE FROM attempts WHERE job_id = ?",
    "DELETE FROM tasks WHERE job_id = ?",
    "DELETE FROM specs WHERE job_id = ?",
    "DELETE FROM journal WHERE job_id = ?",
    "DELETE FROM jobs WHERE job_id = ?",
)
DELETE_OLD = (
    """
    DELETE FROM requests WHERE (caller, request_id) IN
      (SELECT caller, request_id FROM requests WHERE at < :before ORDER BY at LIMIT :limit)
    """,
    """
    DELETE FROM journal WHERE seq IN
      (SELECT seq FROM journal WHERE job_id = '' AND at < :before ORDER BY seq LIMIT :limit)
    """,
    """
    DELETE FROM workers WHERE status = 'gone' AND registered_at < :before
      AND joined_by NOT IN (SELECT token_id FROM tokens)
    """,
    "DELETE FROM allocations WHERE status = 'gone' AND created_at < :before",
)

DELETE_REFUSED = """
DELETE FROM journal WHERE seq IN
  (SELECT seq FROM journal INDEXED BY journal_refused WHERE kind = 'RequestRefused' AND (at < :before OR seq <=
    (SELECT seq FROM journal INDEXED BY journal_refused WHERE kind = 'RequestRefused'
     ORDER BY seq DESC LIMIT 1 OFFSET :keep)) ORDER BY seq LIMIT :limit)
"""


def upsert(table: str, columns: tuple[str, ...], fixed: tuple[str, ...], key: tuple[str, ...]) -> str:
    """A statement that inserts a row, or updates all of it but its key and its fixed columns."""
    values = ", ".join("?" * len(columns))
    changed = ", ".join(f"{quoted(c)} = excluded.{quoted(c)}" for c in columns if c not in key and c not in fixed)
    conflict = ", ".join(map(quoted, key))
    return f"INSERT INTO {table} ({names(columns)}) VALUES ({values}) ON CONFLICT ({conflict}) DO UPDATE SET {changed}"


def names(columns: tuple[str, ...], prefix: str = "") -> str:
    """Column names for a statement."""
    return ", ".join(prefix + quoted(column) for column in columns)


def quoted(column: str) -> str:
    """A column name as SQL takes it whatever words SQL has."""
    return f'"{column}"'
