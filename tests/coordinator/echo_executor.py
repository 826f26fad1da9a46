"""A node's executor for the tests: any bundle, one app that sends back what it gets."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import httpx
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from contracts import flower_private as flower

app = ClientApp()


@app.query("echo")
def echo(message: Message, context: Context) -> Message:
    time.sleep(float(message.content["request"]["seconds"]))
    return Message(RecordDict({"reply": message.content["request"]}), reply_to=message)


@app.query("empty")
def empty(message: Message, context: Context) -> Message:
    return Message(RecordDict({"reply": ConfigRecord({})}), reply_to=message)


def client_of(address: str, *interceptors: object) -> flower.RuntimeHttpClient:
    return flower.RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=True,
        root_certificates=None,
        interceptors=[
            flower.RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"),
            *interceptors,
        ],
    )


def run_task(address: str, token: str) -> None:
    with client_of(address, flower.RuntimeTokenHttpInterceptor(token)) as client:
        message, context, _, _ = flower.pull_task_input(client)
        flower.push_message(client, app(message=message, context=context), context)
        flower.push_task_output(client, context, flower.SubStatus.COMPLETED, "")


def main(address: str, secret: Path) -> None:
    proof = flower.SuperExecAuthHttpInterceptor(
        master_secret=secret.read_bytes(), protected_methods=frozenset({flower.ACQUIRE_TASK})
    )
    wanted = flower.AcquireTaskRequest(supported_task_types=[flower.TaskType.CLIENT_APP.value])
    with client_of(address, proof) as client:
        while True:
            try:
                answer = client.AcquireTask(wanted)
                if answer.HasField("task") and answer.token:
                    run_task(address, answer.token)
            except httpx.HTTPError as error:  # a task of a run that is over, a node that restarts
                print(repr(error), flush=True)
            time.sleep(0.1)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
