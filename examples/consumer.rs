//! Prints what is in a topic, over QUIC.
//!
//! ```text
//! cargo run --example consumer -- 127.0.0.1:7411 waterwheel-data/tls/ca.pem orders
//! ```

use waterwheel::client::{Client, Start};

#[tokio::main(flavor = "current_thread")]
#[expect(clippy::print_stdout, reason = "an example shows what it does")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let [address, ca, topic] = arguments()?;
    let client = Client::connect(&address).ca(ca).await?;
    // Without `until_end` it goes on with what comes.
    let reader = client.reader(&topic).from(Start::Earliest).until_end();
    let mut reader = reader.open().await?;
    while let Some(delivery) = reader.next().await {
        let delivery = delivery?;
        let value = String::from_utf8_lossy(&delivery.value);
        println!("{}/{}: {value}", delivery.partition, delivery.offset);
    }
    client.close().await;
    Ok(())
}

fn arguments() -> Result<[String; 3], &'static str> {
    let given: Vec<String> = std::env::args().skip(1).collect();
    given.try_into().map_err(|_| "usage: ADDRESS CA-FILE TOPIC")
}
