//! A window in the words of a target: cut into requests, each of which can be made again.

use std::ops::Range;
use std::time::Duration;

use prost::Message as _;
use tonic::codec::CompressionEncoding;
use tonic::{Request, Status};

use super::Told;
use super::credentials::Link;
use super::host::Host;
use super::otlp::OtlpWindow;
use super::pprof::PprofWindow;
use super::target::Protocol;
use super::window::Window;
use crate::generated::opentelemetry::proto::collector::profiles::v1development as otlp;
use crate::generated::parca::profilestore::v1alpha1 as parca;
use crate::generated::push::v1 as pyroscope;

/// Longest answer of a target that is read, in bytes.
const MAX_ANSWER_BYTES: usize = 1 << 20;

/// A window on its way to a target.
pub(super) enum Parcel<'a> {
    Otlp(OtlpWindow<'a>),
    Pprof(PprofWindow<'a>, Protocol),
}

/// One request.
pub(super) enum Payload {
    Otlp(otlp::ExportProfilesServiceRequest),
    Pyroscope(pyroscope::PushRequest),
    Parca(parca::WriteRawRequest),
}

impl<'a> Parcel<'a> {
    pub(super) fn new(
        protocol: Protocol,
        window: &'a Window,
        host: &'a Host,
        told: &'a Told,
    ) -> Self {
        match protocol {
            Protocol::Otlp => Self::Otlp(OtlpWindow::named(window, host, &told.attributes)),
            Protocol::Pyroscope | Protocol::Parca => {
                Self::Pprof(PprofWindow::new(window, host, &told.labels), protocol)
            }
        }
    }

    pub(super) fn n_samples(&self) -> usize {
        match self {
            Self::Otlp(window) => window.n_samples(),
            Self::Pprof(window, _) => window.n_samples(),
        }
    }

    /// The request with a range of the samples; `None`: they say nothing.
    pub(super) fn payload(&self, samples: Range<usize>) -> Option<Payload> {
        match self {
            Self::Otlp(window) => {
                let request = window.request(samples);
                (!request.resource_profiles.is_empty()).then_some(Payload::Otlp(request))
            }
            Self::Pprof(window, Protocol::Parca) => {
                let request = window.parca(samples);
                (!request.series.is_empty()).then_some(Payload::Parca(request))
            }
            Self::Pprof(window, _) => {
                let request = window.pyroscope(samples);
                (!request.series.is_empty()).then_some(Payload::Pyroscope(request))
            }
        }
    }
}

impl Payload {
    /// Its size on the wire, in bytes, before it is compressed.
    pub(super) fn n_bytes(&self) -> usize {
        match self {
            Self::Otlp(request) => request.encoded_len(),
            Self::Pyroscope(request) => request.encoded_len(),
            Self::Parca(request) => request.encoded_len(),
        }
    }

    /// Sends it. What the target took with a remark comes back with the remark.
    pub(super) async fn send(
        self,
        link: &Link,
        is_compressed: bool,
        deadline: Duration,
    ) -> Result<Remark, Status> {
        let channel = link.channel.clone();
        match self {
            Self::Otlp(request) => {
                let mut client = otlp::profiles_service_client::ProfilesServiceClient::new(channel)
                    .max_decoding_message_size(MAX_ANSWER_BYTES);
                if is_compressed {
                    // It answers in the same way.
                    client = client
                        .send_compressed(CompressionEncoding::Gzip)
                        .accept_compressed(CompressionEncoding::Gzip);
                }
                let answer = client.export(with_headers(request, link, deadline)).await?;
                let partial = answer.into_inner().partial_success.unwrap_or_default();
                Ok(Remark {
                    n_rejected: u64::try_from(partial.rejected_profiles).unwrap_or(0),
                    text: partial.error_message,
                })
            }
            // What these carry is compressed already.
            Self::Pyroscope(request) => {
                let mut client =
                    pyroscope::pusher_service_client::PusherServiceClient::new(channel)
                        .max_decoding_message_size(MAX_ANSWER_BYTES);
                client.push(with_headers(request, link, deadline)).await?;
                Ok(Remark::default())
            }
            Self::Parca(request) => {
                let mut client =
                    parca::profile_store_service_client::ProfileStoreServiceClient::new(channel)
                        .max_decoding_message_size(MAX_ANSWER_BYTES);
                client
                    .write_raw(with_headers(request, link, deadline))
                    .await?;
                Ok(Remark::default())
            }
        }
    }
}

/// What a target said of what it took: nothing, mostly.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Remark {
    /// Profiles that it did not take.
    pub(super) n_rejected: u64,
    /// In its words.
    pub(super) text: String,
}

fn with_headers<T>(message: T, link: &Link, deadline: Duration) -> Request<T> {
    let mut request = Request::new(message);
    *request.metadata_mut() = link.headers.clone();
    request.set_timeout(deadline);
    request
}
