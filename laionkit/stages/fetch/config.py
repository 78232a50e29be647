"""What fetch can be told."""

import sys
from typing import Annotated, Literal

from pydantic import Field

from laionkit.core.config import Effort, Names, StageConfig
from laionkit.ops.consent import NO_USE
from laionkit.ops.images import MAX_PIXELS, Limits
from laionkit.ops.resize import EncodeFormat, Filter, Resize, ResizeMode


class FetchConfig(StageConfig):
    """How links become images. Names and defaults are img2dataset's where it has the setting."""

    image_size: Annotated[int, Field(ge=1, le=65535)] = 256
    """Target side in pixels; which side, resize_mode says. img2dataset's default."""
    resize_mode: ResizeMode = "border"
    """border fits the picture into a white square, keep_ratio scales the shorter side,
    keep_ratio_largest the longer one, center_crop scales the shorter side and cuts a square, no
    keeps the size. img2dataset's default."""
    resize_only_if_bigger: bool = False
    """Leave pictures alone that are smaller than image_size."""
    upscale_interpolation: Filter = "lanczos"
    """Filter that enlarges. img2dataset's default."""
    downscale_interpolation: Filter = "area"
    """Filter that shrinks. img2dataset's default."""
    encode_format: EncodeFormat = "jpg"
    """Format of the images in the shards."""
    encode_quality: Annotated[int, Field(ge=0, le=100)] = 95
    """Quality of jpg and webp, 1 to 100; compression of png, 0 to 9. img2dataset's default."""
    skip_reencode: bool = False
    """Keep a picture's own bytes, less EXIF and the like, where nothing else about it changes."""
    min_image_size: Annotated[int, Field(ge=0)] = 0
    """Least pixels of the shorter side, judged from the header; 0 takes all."""
    max_image_area: Annotated[int, Field(ge=0)] = 0
    """Most pixels of the original; 0 leaves it to max_pixels."""
    max_aspect_ratio: Annotated[float, Field(ge=0)] = 0.0
    """Most that the longer side may be of the shorter; 0 takes all."""
    max_pixels: Annotated[int, Field(ge=1, le=178_956_970)] = MAX_PIXELS
    """Pictures of more pixels are never decoded. Pillow's and LAION's limit."""
    max_bytes: Annotated[int, Field(ge=1)] = 32 * 2**20
    """Bodies of more bytes are not read to their end, and no picture is made of them."""
    min_bytes: Annotated[int, Field(ge=0)] = 0
    """Fewer bytes are no picture; LAION took none below 5,000."""
    extract_exif: bool = False
    """Keep the EXIF in the row, as JSON. Off by default: it can hold a person's place and name."""
    compute_md5: bool = False
    """Also keep the original's md5 in the row, beside its sha256."""
    compute_phash: bool = False
    """Also keep a 64-bit perceptual hash in the row, as 16 hex digits."""
    verify_hash: Literal["no", "sha256", "md5", "phash"] = "no"
    """Refuse pictures whose hash is not the one in verify_column."""
    verify_column: str = ""
    """Column of the expected hash; by default src_HASH, then HASH."""
    verify_distance: Annotated[int, Field(ge=0, le=64)] = 8
    """Bits in which a perceptual hash may differ from the expected one."""
    bbox_column: str = ""
    """Column of boxes to blur: lists of left, top, right, bottom, each 0 to 1 of the picture's
    size. img2dataset's bbox_col, and its blur."""
    blocklist: Effort[str] = ""
    """File of sha256 or md5 hashes, one a line: such pictures are never decoded or written, only
    counted."""
    x_robots_tag: bool = True
    """Honour X-Robots-Tag headers that hold one of opt_out_directives."""
    opt_out_directives: Names = NO_USE
    """Directives of X-Robots-Tag that refuse use. img2dataset's four, and noml."""
    tdm_reservation: bool = True
    """Honour the header tdm-reservation: 1 (W3C TDMRep)."""
    robots_txt: bool = True
    """Honour robots.txt, for the agent token laionkit, else for *. Read once per site."""
    engine: Literal["laionkit", "img2dataset"] = "laionkit"
    """Who fetches: laionkit, or the package img2dataset, whose shards are checked."""

    allow_private: Effort[bool] = False
    """Also fetch from private, loopback and link-local addresses: for one's own servers."""
    concurrency: Effort[Annotated[int, Field(ge=1, le=4096)]] = 64
    """Requests at once in each process, and one more for each that waits for a slow server, up to
    eight times as many. A worker needs about one core."""
    per_host: Effort[Annotated[int, Field(ge=1)]] = 16
    """Requests at once to one host, over all processes and parts of the run."""
    per_host_rate: Effort[Annotated[float, Field(ge=0)]] = 0.0
    """Requests a second to one host, over all processes and parts; 0 sets no rate."""
    crawl_delay: Effort[bool] = True
    """Honour the Crawl-delay of a robots.txt, up to 10 s between two requests to its host."""
    max_mbps: Effort[Annotated[float, Field(ge=0)]] = 0.0
    """Megabits a second that all processes and parts together take in; 0 takes what comes."""
    timeout_s: Effort[Annotated[float, Field(gt=0)]] = 10.0
    """Seconds that one whole request may take, redirects and body included. img2dataset's."""
    retries: Effort[Annotated[int, Field(ge=0, le=20)]] = 2
    """Tries after the first, for what may heal: timeouts, resets, 429, 5xx, DNS hiccups."""
    backoff_s: Effort[Annotated[float, Field(ge=0)]] = 1.0
    """Seconds before the first retry, give or take half; doubled with each."""
    max_redirects: Effort[Annotated[int, Field(ge=0, le=30)]] = 5
    """Redirects followed, each checked like the first address."""
    verify_tls: Effort[bool] = True
    """Refuse servers whose certificate is not valid."""
    contact: Effort[str] = ""
    """Address (URL or e-mail) put into the user agent, so that a site's owner can reach you."""
    resolver: Effort[str] = ""
    """Address of the DNS server to ask, instead of the system's."""
    network_wait_s: Effort[Annotated[float, Field(ge=0)]] = 600.0
    """Seconds to wait for a network that is gone before the run stops; 0 never pauses."""
    decode_timeout_s: Effort[Annotated[float, Field(gt=0)]] = 30.0
    """Seconds that decoding one picture may take."""
    retry: Effort[bool] = False
    """Try again the links of finished shards whose reason may heal. What heals goes into new
    shards, under its key; finished shards stay."""
    dry_run: Effort[bool] = False
    """Fetch 1,000 links at random, write nothing, and tell success, bytes, hours and disk of the
    whole."""

    def most_workers(self, parts: int) -> int:
        """Processes of each part among which the requests to one host can be divided."""
        return self.per_host // parts if self.engine == "laionkit" else sys.maxsize

    @property
    def limits(self) -> Limits:
        """What a picture's header may say."""
        most = min(self.max_pixels, self.max_image_area or self.max_pixels)
        return Limits(most, self.min_image_size, self.max_aspect_ratio)

    @property
    def how(self) -> Resize:
        """How pictures are sized."""
        return Resize(
            self.resize_mode,
            self.image_size,
            self.resize_only_if_bigger,
            self.upscale_interpolation,
            self.downscale_interpolation,
        )
