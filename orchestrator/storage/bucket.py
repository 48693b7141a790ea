"""A part of a bucket in an object storage that speaks S3, with the one thing that leases ask of it: conditional writes.

`If-None-Match: *` writes what nobody has written, and `If-Match: ETAG` replaces what nobody has replaced meanwhile. A
store that takes them and does not keep to them is refused when it is opened, since two machines would run every trial.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import UserError
from orchestrator.words import first_line

_ADDRESS = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(.*?))?/?")
_LOST = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409")
MOST_BYTES = 2**32
"""One write takes 5 GB at most, and is whole by itself: nothing larger is shared."""


class BucketError(UserError):
    """An object storage that can't be used, or does not answer."""


class TooLarge(BucketError):
    """One thing that is more than one write takes; of the others the object storage has them all the same."""


def check_size(what: object, size: int) -> None:
    """Raise `TooLarge` where something is more than one write takes."""
    if size > MOST_BYTES:
        raise TooLarge(f"{what}: {size:,} bytes, and one write into a bucket takes at most {MOST_BYTES:,}")


@dataclass(frozen=True)
class Entry:
    """What a listing says of an object.

    Attributes:
        etag: Changes whenever the object is written.
        size: Its bytes.
    """

    etag: str
    size: int


class Bucket:
    """The objects under a prefix.

    Args:
        address: `s3://BUCKET/PREFIX`. Whose it is, and where, is for boto3 to know: AWS_ENDPOINT_URL, AWS_PROFILE,
            AWS_ACCESS_KEY_ID and the like.

    Raises:
        BucketError: It is no such address, boto3 is missing, or the store does not answer or keeps to no conditions.
    """

    def __init__(self, address: str) -> None:
        found = _ADDRESS.fullmatch(address)
        if found is None:
            raise BucketError(f"{address!r:.200}: expected s3://BUCKET/PREFIX")
        try:
            import boto3
            from botocore.config import Config
        except ImportError:
            raise BucketError(f"{address}: needs boto3: pip install 'idp[s3]'") from None
        self.address, self._name = address.rstrip("/"), found[1]
        self._prefix = f"{found[2]}/" if found[2] else ""
        config = Config(connect_timeout=5, read_timeout=30, retries={"mode": "standard", "total_max_attempts": 3})
        with self._told():
            self._client = boto3.client("s3", config=config)
        self._check_conditions()

    def _check_conditions(self) -> None:
        key = f"probes/{uuid.uuid4().hex}"
        first = self.put(key, b"1", instead_of="")
        kept = first and self.put(key, b"2", instead_of="") is None and self.put(key, b"3", instead_of="0" * 32) is None
        self.remove(key)
        if not kept:
            raise BucketError(
                f"{self.address}: this store writes over what is there though a write says If-None-Match or If-Match, "
                "so that two machines would run the same trial; Amazon's S3 keeps to both"
            )

    @contextmanager
    def _told(self) -> Iterator[None]:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (BotoCoreError, ClientError, Boto3Error, ValueError, OSError) as error:  # OSError: a file of credentials
            raise BucketError(f"{self.address}: {first_line(error)}") from error

    def put(self, key: str, body: bytes, *, instead_of: str) -> str | None:
        """Write an object on a condition; return its ETag, None where the condition does not hold.

        Args:
            key: Its name under the prefix.
            body: Its content.
            instead_of: The ETag of what it replaces; empty where there must be nothing yet.

        Raises:
            TooLarge: It is more than `MOST_BYTES`.
        """
        check_size(key, len(body))
        condition: dict[str, Any] = {"IfMatch": instead_of} if instead_of else {"IfNoneMatch": "*"}
        with self._told():
            try:
                answer = self._client.put_object(Bucket=self._name, Key=self._prefix + key, Body=body, **condition)
            except self._client.exceptions.ClientError as error:
                if _code(error) in _LOST or (instead_of and _code(error) in ("NoSuchKey", "404")):
                    # The first answer may have been lost, and the write be ours all the same.
                    return self._etag_if(key, body)
                raise
        return str(answer["ETag"])

    def _etag_if(self, key: str, body: bytes) -> str | None:
        found = self.get(key)
        return found[1] if body and found is not None and found[0] == body else None

    def get(self, key: str) -> tuple[bytes, str] | None:
        """Return an object's content and ETag, None where there is none; `TooLarge` where idp has not written it."""
        with self._told():
            try:
                answer = self._client.get_object(Bucket=self._name, Key=self._prefix + key)
            except self._client.exceptions.ClientError as error:
                if _code(error) in ("NoSuchKey", "404"):
                    return None
                raise
        check_size(key, answer["ContentLength"])
        with self._told():
            return answer["Body"].read(), str(answer["ETag"])

    def entries(self, folder: str, start: str = "") -> dict[str, Entry]:
        """Return the objects in a folder whose names begin with `start`, by their names in it."""
        place, found = f"{self._prefix}{folder}/", {}
        with self._told():
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._name, Prefix=place + start)
            for page in pages:
                for item in page.get("Contents", ()):
                    found[str(item["Key"]).removeprefix(place)] = Entry(str(item["ETag"]), int(item["Size"]))
        return found

    def remove(self, key: str) -> None:
        """Remove an object, where it is."""
        with self._told():
            self._client.delete_object(Bucket=self._name, Key=self._prefix + key)


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
