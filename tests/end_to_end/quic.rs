//! What only a connection over QUIC can do, or have done to it.

use std::cell::Cell;
use std::pin::pin;
use std::time::{Duration, Instant};

use waterwheel::transport::Ended;
use waterwheel::wire::ALPN;
use waterwheel::wire::code::Code;
use waterwheel::wire::frame::FrameKind;
use waterwheel::wire::hello::Ping;

use crate::client::Client;
use crate::hostile::{frame, noise, pings};
use crate::rig::{Node, Rig, run};

#[test]
fn a_client_of_a_killed_broker_hears_of_it_with_its_next_packet() {
    run(async {
        let rig = Rig::start().await;
        let mut client = rig.client().await;
        let Rig {
            dir,
            mut config,
            node,
        } = rig;
        config.listen = node.addr;
        node.kill().await;
        assert!(
            client.connection.ended().is_none(),
            "a kill says goodbye to nobody"
        );
        let node = Node::try_start(config, None).await.unwrap();
        client.control.request(&Ping {}, bytes::Bytes::new()).await;
        let error = client.connection.closed().await;
        assert!(matches!(error, Ended::Forgotten), "{error}");
        node.assert_serves().await;
        drop(dir);
    });
}

#[test]
fn another_protocol_or_none_is_refused_in_the_handshake() {
    run(async {
        let rig = Rig::start().await;
        for protocols in [
            vec![b"waterwheel/2".to_vec()],
            vec![b"h3".to_vec()],
            Vec::new(),
        ] {
            let mut tls = rig.node.tls(ALPN);
            tls.alpn_protocols = protocols;
            let endpoint = Node::endpoint(tls);
            let connecting = endpoint
                .connect(rig.node.addr.unwrap(), "localhost")
                .unwrap();
            let error = connecting.await.expect_err("no protocol in common");
            // TLS alert 120, no_application_protocol, as QUIC carries it.
            assert!(error.to_string().contains("120"), "{error}");
        }
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for seed in 0..200 {
            let size = if seed % 2 == 0 { 1200 } else { 40 };
            socket
                .send_to(&noise(seed, size), rig.node.addr.unwrap())
                .unwrap();
        }
        rig.node.assert_serves().await;
    });
}

#[test]
fn nothing_is_taken_before_the_handshake_is_done() {
    run(async {
        let rig = Rig::start().await;
        let mut tls = rig.node.tls(ALPN);
        tls.enable_early_data = true;
        let endpoint = Node::endpoint(tls);
        for _ in 0..3 {
            let connecting = endpoint
                .connect(rig.node.addr.unwrap(), "localhost")
                .unwrap();
            let connecting = connecting
                .into_0rtt()
                .err()
                .expect("no ticket, no early data");
            let connection = connecting.await.unwrap();
            let mut client = Client::greet(Some(endpoint.clone()), connection.into())
                .await
                .unwrap();
            // A round trip after the handshake: a ticket would have come by now.
            pings(&mut client.control).await;
        }
    });
}

/// Whoever comes back at once after each refusal waits a little longer each time; who is in notices nothing.
#[test]
fn an_address_that_goes_on_misbehaving_is_let_in_ever_more_slowly() {
    run(async {
        let rig = Rig::start().await;
        let mut calm = rig.client().await;
        for _ in 0..7 {
            let mut client = rig.client().await;
            client
                .control
                .raw(&frame(u32::MAX, FrameKind::Produce as u16, &[], 1))
                .await;
            assert_eq!(client.closed_with().await, Code::FrameTooLarge);
        }
        let begun = Instant::now();
        let mut answered = 0;
        let mut again = pin!(rig.client());
        loop {
            tokio::select! {
                _ = &mut again => break,
                () = pings(&mut calm.control) => answered += 1,
            }
        }
        // 4 ms, doubled six times: 256 ms from its last offence on, but for what passed before `begun`.
        let waited = begun.elapsed();
        assert!(waited > Duration::from_millis(100), "{waited:?}");
        assert!(answered > 10, "{answered}");
    });
}

/// Twenty attempts of an offender wait at any time, in front of whoever shares its address.
#[test]
fn who_shares_an_address_with_one_that_misbehaves_still_gets_in() {
    run(async {
        let rig = Rig::start().await;
        let (endpoint, first) = rig.node.dial().await;
        let endpoint = endpoint.expect("over QUIC");
        drop(first);
        let offences = Cell::new(0);
        let misbehave = async || {
            loop {
                let connecting = endpoint.connect(rig.node.addr.unwrap(), "localhost");
                // Refused as often as not.
                let Ok(connection) = connecting.unwrap().await else {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    continue;
                };
                let client = Client::greet(Some(endpoint.clone()), connection.into()).await;
                let Ok(mut client) = client else { continue };
                let giant = frame(u32::MAX, FrameKind::Produce as u16, &[], 1);
                client.control.raw(&giant).await;
                assert_eq!(client.closed_with().await, Code::FrameTooLarge);
                offences.set(offences.get() + 1);
            }
        };
        let crowd = futures::future::join_all((0..20).map(|_| misbehave()));
        let neighbour = async {
            // Until the pause is half a second.
            while offences.get() < 8 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            for _ in 0..3 {
                let client = rig.node.connect().timeout(Duration::from_secs(5));
                client.await.expect("its turn comes before theirs");
            }
        };
        tokio::select! {
            _ = crowd => unreachable!("it goes on"),
            () = neighbour => {}
        }
        assert!(offences.get() < 40, "{} came in", offences.get());
    });
}
