//! Sends each line of standard input as a record, over QUIC.
//!
//! ```text
//! waterwheel serve
//! echo '42 roses' | cargo run --example producer -- 127.0.0.1:7411 waterwheel-data/tls/ca.pem orders
//! ```

use std::io::BufRead;

use waterwheel::client::{Client, Code, Record, TopicConfig};

#[tokio::main(flavor = "current_thread")]
#[expect(clippy::print_stdout, reason = "an example shows what it does")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let [address, ca, topic] = arguments()?;
    let client = Client::connect(&address).ca(ca).await?;
    match client.create_topic(&topic, TopicConfig::new(4)).await {
        Ok(_) => println!("made topic {topic}"),
        Err(error) if error.code() == Code::TopicExists.name() => {}
        Err(error) => return Err(error.into()),
    }

    let producer = client.producer(&topic).open().await?;
    let mut receipts = Vec::new();
    for line in std::io::stdin().lock().lines() {
        // Waits only for room; what becomes of the record is told by the receipt.
        receipts.push(producer.enqueue(Record::new(line?)).await?);
    }
    for receipt in receipts {
        let receipt = receipt.await?;
        println!(
            "partition {}, offset {:?}",
            receipt.partition, receipt.offset
        );
    }
    producer.close().await?;
    client.close().await;
    Ok(())
}

fn arguments() -> Result<[String; 3], &'static str> {
    let given: Vec<String> = std::env::args().skip(1).collect();
    given.try_into().map_err(|_| "usage: ADDRESS CA-FILE TOPIC")
}
