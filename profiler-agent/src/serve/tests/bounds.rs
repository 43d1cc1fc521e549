//! Clients that mean no good: while they are at it, an honest one is served.

use std::time::Instant;

use super::access::secret;
use super::*;

/// More than there are places.
const FLOOD: usize = 300;

/// The honest client: each of its requests over a connection of its own. Returns the longest time that one took.
async fn ask(running: &Running, n: usize) -> Duration {
    let mut longest = Duration::ZERO;
    for _ in 0..n {
        let begun = Instant::now();
        let answer = tokio::time::timeout(Duration::from_mins(1), running.get("/livez")).await;
        assert_eq!(answer.expect("an answer").0, 200);
        longest = longest.max(begun.elapsed());
    }
    longest
}

/// So many connections, each with the same bytes.
async fn flood(address: SocketAddr, beginning: &'static [u8]) -> Vec<TcpStream> {
    let connect = move |_| {
        let mut stream = connect(address);
        // It may have been sent away already.
        let _ = stream.write_all(beginning);
        stream
    };
    let flood = spawn_blocking(move || (0..FLOOD).map(connect).collect());
    flood.await.unwrap()
}

fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).unwrap()
}

#[tokio::test]
async fn half_open_connections_hold_nobody_up() {
    let running = start().await;
    for beginning in [
        &b""[..],
        b"G",
        b"GET / HTTP/1.1\r\nHost: lo",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let flood = flood(running.address, beginning).await;
        // They wait 10 s for a head: an honest client does not.
        let longest = ask(&running, 20).await;
        println!("{FLOOD} connections that begin with {beginning:?}: at most {longest:?}");
        assert!(longest < Duration::from_secs(5), "{longest:?}");
        drop(flood);
    }
    running.stop().await;
}

#[tokio::test]
async fn connections_that_are_kept_and_idle_make_room() {
    let running = start().await;
    let keep = |address| {
        let mut stream = connect(address);
        stream
            .write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .unwrap();
        let _ = stream.read(&mut [0; 16]);
        stream
    };
    let address = running.address;
    let kept = spawn_blocking(move || (0..FLOOD).map(|_| keep(address)).collect::<Vec<_>>());
    let kept = kept.await.unwrap();
    let longest = ask(&running, 20).await;
    assert!(longest < Duration::from_secs(5), "{longest:?}");
    drop(kept);
    running.stop().await;
}

#[tokio::test]
async fn a_request_that_drips_is_ended_by_the_time_for_its_head() {
    let mut server = bind("127.0.0.1:0").unwrap();
    server.patience.header = Duration::from_millis(300);
    let running = serve(server);
    let address = running.address;
    let dripping = spawn_blocking(move || {
        let mut stream = connect(address);
        let begun = Instant::now();
        // Each byte comes in time; all of them do not.
        while begun.elapsed() < Duration::from_secs(30) {
            if stream.write_all(b"G").is_err() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    });
    assert!(dripping.await.unwrap(), "it was not ended");
    // After a first request that was whole, too.
    let dripping = spawn_blocking(move || {
        let mut stream = connect(address);
        let request = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\nGET / HT";
        stream.write_all(request).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        stream.read_to_end(&mut Vec::new()).is_ok()
    });
    assert!(dripping.await.unwrap(), "it was not ended");
    running.stop().await;
}

#[tokio::test]
async fn the_rest_of_a_request_has_to_come_in_time() {
    let mut server = bind("127.0.0.1:0").unwrap();
    server.patience.header = Duration::from_millis(300);
    let running = serve(server);
    let address = running.address;
    let answer = spawn_blocking(move || {
        let mut stream = connect(address);
        let head = "POST /pyagent.v1.ProfileService/GetStatus HTTP/1.1\r\nHost: localhost\r\n\
                    Content-Type: application/grpc\r\nContent-Length: 5\r\n\r\n\0\0";
        stream.write_all(head.as_bytes()).unwrap();
        // Without the bound this would wait for ever.
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        stream.read(&mut [0; 1024])
    });
    answer.await.unwrap().unwrap();
    running.stop().await;
}

#[tokio::test]
async fn streams_without_an_end_make_room_too() {
    let running = start().await;
    let mut watching = Vec::new();
    for _ in 0..FLOOD {
        let channel = running.channel().await;
        let request = HealthCheckRequest::default();
        let watch = HealthClient::new(channel).watch(request).await.unwrap();
        watching.push(watch);
    }
    let longest = ask(&running, 20).await;
    assert!(longest < Duration::from_secs(5), "{longest:?}");
    drop(watching);
    running.stop().await;
}

#[tokio::test]
async fn heads_are_bounded() {
    let running = start().await;
    let many = "X: y\r\n".repeat(200);
    let long = format!("X: {}\r\n", "y".repeat(100 << 10));
    for headers in [many, long] {
        let request =
            format!("GET /livez HTTP/1.1\r\nHost: localhost\r\n{headers}Connection: close\r\n\r\n");
        let address = running.address;
        let status = spawn_blocking(move || {
            let mut stream = connect(address);
            // It is answered before all of it was sent.
            let _ = stream.write_all(request.as_bytes());
            let mut answer = [0; 12];
            stream.read_exact(&mut answer).map(|()| answer)
        });
        if let Ok(answer) = status.await.unwrap() {
            assert_eq!(&answer[..10], b"HTTP/1.1 4", "{answer:?}");
        }
    }
    ask(&running, 1).await;
    running.stop().await;
}

/// A frame of HTTP/2 (RFC 9113).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// What a connection of HTTP/2 begins with.
fn preface() -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(0x4, 0, 0, &[]));
    bytes
}

/// `GET /livez` of `localhost` (HPACK: indexed method and scheme, literal path and authority).
fn head() -> Vec<u8> {
    let mut head = vec![0x82, 0x86, 0x04, 6];
    head.extend(b"/livez");
    head.extend([0x01, 9]);
    head.extend(b"localhost");
    head
}

/// Its name, and its frames by number.
type Flood<'a> = (&'a str, &'a dyn Fn(u32) -> Vec<u8>);

#[tokio::test]
async fn floods_of_http2_frames_hold_nobody_up() {
    /// Frames of each flood.
    const N_FRAMES: u32 = 50_000;
    let running = start().await;
    let rapid_reset = |idx: u32| {
        let stream = 2 * idx + 1;
        let mut frames = frame(0x1, 0x5, stream, &head());
        frames.extend(frame(0x3, 0, stream, &8u32.to_be_bytes()));
        frames
    };
    let settings = |_: u32| frame(0x4, 0, 0, &[]);
    let pings = |_: u32| frame(0x6, 0, 0, &[0; 8]);
    // Header blocks that never end (CVE-2024-27316).
    let continuations = |idx: u32| {
        if idx == 0 {
            frame(0x1, 0x1, 1, &head())
        } else {
            frame(0x9, 0, 1, &[0x00, 1, b'x', 1, b'y'])
        }
    };
    let floods: [Flood<'_>; 4] = [
        ("rapid reset", &rapid_reset),
        ("settings", &settings),
        ("pings", &pings),
        ("continuations", &continuations),
    ];
    for (name, flood) in floods {
        let bytes: Vec<u8> = std::iter::once(preface())
            .chain((0..N_FRAMES).map(flood))
            .flatten()
            .collect();
        let bytes = Arc::new(bytes);
        let address = running.address;
        let attacks: Vec<_> = (0..4)
            .map(|_| {
                let bytes = bytes.clone();
                spawn_blocking(move || {
                    let mut stream = connect(address);
                    stream
                        .set_write_timeout(Some(Duration::from_secs(20)))
                        .unwrap();
                    // The server may end it in the middle, or stop to read what it need not answer.
                    stream.write_all(&bytes).is_ok()
                })
            })
            .collect();
        let longest = ask(&running, 20).await;
        println!("{name}: an honest client waits at most {longest:?}");
        assert!(longest < Duration::from_secs(10), "{name}: {longest:?}");
        for attack in attacks {
            let _ = attack.await.unwrap();
        }
    }
    running.stop().await;
}

#[tokio::test]
async fn handshakes_that_do_not_end_hold_no_place() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let mut config = config("https://127.0.0.1:0");
    config.tls = Some(TlsFiles {
        cert: secret(folder, "cert", &certificate.pem()),
        key: secret(folder, "key", &key.serialize_pem()),
        client_ca: None,
    });
    config.token_file = Some(secret(folder, "tokens", "0123456789abcdef\n"));
    let mut server = Server::bind(&config).unwrap();
    server.patience.handshake = Duration::from_millis(300);
    let running = serve(server);
    let address = running.address;
    for beginning in [&b""[..], b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"] {
        let ended = spawn_blocking(move || {
            let mut stream = connect(address);
            stream.write_all(beginning).unwrap();
            stream
                .set_read_timeout(Some(Duration::from_secs(30)))
                .unwrap();
            // An alert, at most, and the end.
            stream.read_to_end(&mut Vec::new()).is_ok()
        });
        assert!(ended.await.unwrap());
    }
    let flood = flood(address, b"").await;
    let (status, _) = {
        let url = format!("https://localhost:{}/livez", address.port());
        let ca = folder.join("cert");
        let output = spawn_blocking(move || {
            Command::new("curl")
                .args(["--silent", "--show-error", "--max-time", "30", "--cacert"])
                .arg(ca)
                .args(["--header", "Authorization: Bearer 0123456789abcdef", &url])
                .output()
                .expect("curl is there")
        });
        let output = output.await.unwrap();
        (
            String::from_utf8_lossy(&output.stdout).into_owned(),
            output.stderr,
        )
    };
    assert_eq!(status, "ok\n");
    drop(flood);
    running.stop().await;
}
