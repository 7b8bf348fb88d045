"""Objects of S3 and of what speaks like it: addressed and signed by botocore, fetched as from any web server."""

from __future__ import annotations

from urllib.parse import quote

import urllib3
from botocore import UNSIGNED, exceptions, httpsession, session
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config

from pipeline.base.border import one_line
from pipeline.data.web_client import HttpClient, make_pool

FIRST_REGION = "us-east-1"  # signatures are for it where no region is set
_SETTINGS_ERRORS = (
    exceptions.ProfileNotFound,
    exceptions.PartialCredentialsError,
    exceptions.ConfigParseError,
    exceptions.InvalidConfigError,
    exceptions.ParamValidationError,
)


class S3Client(HttpClient):
    """Objects of a bucket, as botocore's settings say: ``AWS_*``, ``AWS_ENDPOINT_URL``, profiles, roles of machines.

    botocore finds the address of the bucket and the credentials, renews them, and signs; requests of its own take a
    millisecond of the processor more. Where it finds no credentials, requests are not signed: public buckets answer.
    """

    redirects = False  # a signature is for one host

    def __init__(self, url: str) -> None:
        """
        Raises:
            ValueError: settings that botocore refuses, or no name of a bucket.
        """
        self._bucket, _, folder = url.partition("://")[2].partition("/")
        self._folder = f"{folder.strip('/')}/" if folder.strip("/") else ""
        self._session = session.Session()
        try:
            self._credentials = self._session.get_credentials()
            self._region, self._url = self._place(None)
            certificates = self._session.get_config_variable("ca_bundle") or httpsession.get_cert_path(True)
        except _SETTINGS_ERRORS as error:
            raise ValueError(one_line(error)) from error
        if self._credentials is None:
            self.hint = "; it was asked without credentials, because none were found"
        self._pool = make_pool(self._url, ca_certs=certificates)

    def _place(self, region: str | None) -> tuple[str, str]:
        """The region that signatures are for, and the URL of the folder; it ends in ``/``."""
        client = self._session.create_client("s3", region_name=region, config=Config(signature_version=UNSIGNED))
        place = {"Bucket": self._bucket, "Key": f"{self._folder}x"}
        url = client.generate_presigned_url("get_object", Params=place).removesuffix("x")
        found = client.meta.region_name
        return FIRST_REGION if found in (None, "aws-global") else found, url

    def _ask(self, name: str, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        response = self._get(*self._signed(name, headers))
        region = response.headers.get("x-amz-bucket-region")
        if response.status not in (301, 307, 400) or not region or region == self._region:
            return response
        response.drain_conn()
        self._region, self._url = self._place(region)
        return self._get(*self._signed(name, headers))

    def _signed(self, name: str, headers: dict[str, str]) -> tuple[str, dict[str, str]]:
        """The URL and the headers of a request."""
        request = AWSRequest("GET", self._url + quote(name), headers=headers)
        if self._credentials is not None:
            S3SigV4Auth(self._credentials.get_frozen_credentials(), "s3", self._region).add_auth(request)
        return request.url, dict(request.headers.items())
