"""What a client does with a message."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from digits_app.task import build_model, evaluate, load_partition, train

app = ClientApp()


def _partition(context: Context) -> tuple[int, int]:
    """Return this node's partition: the one it was dealt, or a tenth chosen by its id."""
    of = int(context.node_config.get("num-partitions", 10))
    return int(context.node_config.get("partition-id", context.node_id)) % of, of


@app.train()
def train_locally(message: Message, context: Context) -> Message:
    """Train the model received on this client's examples."""
    model = build_model()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    batches, _ = load_partition(*_partition(context))
    config = context.run_config
    loss = train(model, batches, int(config["local-epochs"]), float(config["learning-rate"]))
    metrics = MetricRecord({"train-loss": loss, "num-examples": len(batches.dataset)})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=message)


@app.evaluate()
def evaluate_locally(message: Message, context: Context) -> Message:
    """Evaluate the model received on this client's validation examples."""
    model = build_model()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    _, batches = load_partition(*_partition(context))
    metrics = MetricRecord(
        {"accuracy": evaluate(model, batches), "num-examples": len(batches.dataset)}
    )
    return Message(content=RecordDict({"metrics": metrics}), reply_to=message)
