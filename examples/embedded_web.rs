//! A web service with the broker inside: no other process, no network between them.
//!
//! ```text
//! cargo run --example embedded_web                     # data in ./waterwheel-data
//! curl -d '42 roses' http://127.0.0.1:8080/orders/anna
//! curl http://127.0.0.1:8080/orders
//! waterwheel consume orders                            # the same, from elsewhere, over QUIC
//! ```
//!
//! `embedded_web DIRECTORY HTTP-PORT QUIC-PORT`; port 0 takes a free one.

use std::fmt::Write;

use actix_web::error::ErrorServiceUnavailable as Unavailable;
use actix_web::{App, HttpServer, get, post, web};
use waterwheel::client::{Client, Producer, Record, TopicConfig};
use waterwheel::{Broker, Config};

/// Answers when the order is on the disk.
#[post("/orders/{customer}")]
async fn order(
    customer: web::Path<String>,
    body: web::Bytes,
    orders: web::Data<Producer>,
) -> actix_web::Result<String> {
    let record = Record::new(body).key(customer.into_inner());
    let receipt = orders.send(record).await.map_err(Unavailable)?;
    let offset = receipt.offset.unwrap_or_default();
    Ok(format!(
        "partition {}, offset {offset}\n",
        receipt.partition
    ))
}

/// All orders there are, each customer's in order.
#[get("/orders")]
async fn list(client: web::Data<Client>) -> actix_web::Result<String> {
    let reader = client.reader("orders").until_end().open().await;
    let mut reader = reader.map_err(Unavailable)?;
    let mut text = String::new();
    while let Some(delivery) = reader.next().await {
        let delivery = delivery.map_err(Unavailable)?;
        let customer = String::from_utf8_lossy(delivery.key.as_deref().unwrap_or_default());
        let value = String::from_utf8_lossy(&delivery.value);
        let _ = writeln!(text, "{customer}: {value}");
    }
    Ok(text)
}

#[actix_web::main]
#[expect(clippy::print_stdout, reason = "an example says where it is")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let data = arguments.next().unwrap_or("waterwheel-data".to_owned());
    let http: u16 = arguments.next().map_or(Ok(8080), |port| port.parse())?;
    let quic: u16 = arguments.next().map_or(Ok(7411), |port| port.parse())?;
    let broker = Broker::start(Config {
        data: data.into(),
        listen: Some(([127, 0, 0, 1], quic).into()), // None serves in process only
        ..Config::default()
    });
    let broker = broker.await?;
    let client = broker.client().await?;
    if client.topic("orders").await.is_err() {
        client.create_topic("orders", TopicConfig::new(4)).await?;
    }
    let orders = client.producer("orders").open().await?;

    let (shared, shared_orders) = (client.clone(), orders.clone());
    let server = HttpServer::new(move || {
        App::new()
            .app_data(web::Data::new(shared.clone()))
            .app_data(web::Data::new(shared_orders.clone()))
            .service(order)
            .service(list)
    });
    let server = server.workers(1).bind(("127.0.0.1", http))?;
    println!("http {:?}, quic {:?}", server.addrs(), broker.local_addr());
    server.run().await?; // until SIGTERM or SIGINT, which are the service's to handle

    orders.close().await?; // everything accepted is durable
    broker.stop().await; // views written, log closed, directory free
    Ok(())
}
