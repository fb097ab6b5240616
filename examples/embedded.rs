//! A broker inside an actix application, and a client in the same process.
//!
//! ```text
//! cargo run --example embedded
//! ```

use waterwheel::broker::Broker;
use waterwheel::client::{Client, Record, TopicConfig};
use waterwheel::config::Config;

#[expect(clippy::print_stdout, reason = "an example shows what it does")]
async fn run() -> Result<(), Box<dyn std::error::Error>> {
    let config = Config {
        data: std::env::temp_dir().join("waterwheel-embedded"),
        listen: Some(([127, 0, 0, 1], 0).into()),
        ..Config::default()
    };
    let authority = config.data.join("tls/ca.pem");
    // Ready when it returns: recovered, listening. It installs no signal handler, no logger, no
    // crypto provider, and never ends the process: those are the application's.
    let broker = Broker::start(config).await?;
    let address = broker.local_addr().ok_or("it listens nowhere")?;

    let client = Client::connect(&address.to_string()).ca(authority).await?;
    if client.topic("orders").await.is_err() {
        client.create_topic("orders", TopicConfig::new(8)).await?;
    }
    let producer = client.producer("orders").open().await?;
    let receipt = producer
        .send(Record::new("42 roses").key("order-17"))
        .await?;
    println!(
        "durable: partition {}, offset {:?}",
        receipt.partition, receipt.offset
    );
    producer.close().await?;

    let mut reader = client.reader("orders").until_end().open().await?;
    while let Some(delivery) = reader.next().await {
        let delivery = delivery?;
        println!(
            "read: partition {}, offset {}, {} bytes",
            delivery.partition,
            delivery.offset,
            delivery.value.len()
        );
    }
    drop((reader, client));
    broker.stop().await;
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    actix_rt::System::new().block_on(run())
}
