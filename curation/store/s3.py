"""S3 through pyarrow: what stands behind s3:// where s3fs, whose pins exclude boto3's, is not installed.

Credentials and region come from where the AWS SDK looks for them (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
AWS_DEFAULT_REGION, profiles, the machine's role), another service than Amazon's from AWS_ENDPOINT_URL.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import time
import uuid

import pyarrow as pa
from fsspec.implementations.arrow import ArrowFSWrapper
from pyarrow.fs import S3FileSystem

SETTLED = 2.0  # seconds in which writers that began at the same time have written
TAKEN = {"PreconditionFailed", "ConditionalRequestConflict"}
UNCONDITIONAL = {"NotImplemented", "InvalidArgument", "InvalidRequest"}  # what services say that know no conditions
ONE_REQUEST = 4 << 20  # bytes; pyarrow sends less than a part (at least 5 MiB) in one request, which is atomic


class ArrowS3(ArrowFSWrapper):
    """S3 as an fsspec file system.

    Args:
        endpoint: URL of the service; by default Amazon's.
        options: of every fsspec file system.
    """

    protocol = ("s3", "s3a")

    def __init__(self, endpoint: str | None = None, **options: object) -> None:
        # Parts are sent one after the other: in the background pyarrow would hold a copy of the whole file.
        s3 = S3FileSystem(endpoint_override=endpoint, background_writes=False, allow_delayed_open=True)
        super().__init__(s3, **options)

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, str]:
        """Return the endpoint of the environment: file systems are cached by these arguments."""
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        return {"endpoint": endpoint} if endpoint else {}

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        """Return bucket/key; unlike the base class, with all of a key that holds ? or #."""
        scheme, mark, rest = path.partition("://")
        return (rest if mark and scheme in cls.protocol else path).rstrip("/")

    def ls(self, path: str, detail: bool = False, **options: object) -> list[object]:
        """List a folder; a bucket that is not there is FileNotFoundError."""
        try:
            return list(super().ls(path, detail, **options))
        except OSError as error:
            if "NO_SUCH_BUCKET" in str(error):
                raise FileNotFoundError(errno.ENOENT, f"there is no bucket {path.split('/')[0]}") from error
            raise

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: object) -> None:
        """Write an object; mode "create" raises FileExistsError when there is one, whoever is faster."""
        if mode != "create":
            super().pipe_file(path, value, mode, **options)
        elif importlib.util.find_spec("boto3"):
            self._put_new(path, value)
        else:
            self._put_and_look(path, value)

    def _put_new(self, path: str, value: bytes) -> None:
        """Put an object on the condition that there is none, which pyarrow cannot ask for."""
        import boto3
        from botocore.exceptions import ClientError

        bucket, _, key = self._strip_protocol(path).partition("/")
        try:
            boto3.client("s3").put_object(Bucket=bucket, Key=key, Body=value, IfNoneMatch="*")
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code in TAKEN:
                raise FileExistsError(errno.EEXIST, "there is an object already", path) from error
            if code not in UNCONDITIONAL:
                raise OSError(f"{path}: {error}") from error
            self._put_and_look(path, value)

    def _put_and_look(self, path: str, value: bytes) -> None:
        """Put an object where there is none, and look a while later whose it is: the last of several wins."""
        super().pipe_file(path, value, "create")
        time.sleep(SETTLED)
        if self.cat_file(path) != value:
            raise FileExistsError(errno.EEXIST, "there is an object already", path)

    def put_file(self, lpath: str, rpath: str, **options: object) -> None:
        """Upload a local file; the object appears whole or not at all.

        pyarrow completes an upload also when it drops a stream that failed, so what takes several requests goes to
        another key first.
        """
        path = self._strip_protocol(rpath)
        whole = os.path.getsize(lpath) <= ONE_REQUEST
        target = path if whole else f"{path}.{uuid.uuid4().hex}.tmp"
        try:
            with pa.memory_map(lpath) as file, self.fs.open_output_stream(target, compression=None) as stream:
                stream.write(file.read_buffer())
            if not whole:
                self.fs.move(target, path)
        except BaseException:
            if not whole:
                with contextlib.suppress(OSError):
                    self.fs.delete_file(target)
            raise
