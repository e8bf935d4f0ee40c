"""Small files of every form, and what a plain reader makes of them."""

import csv
import io
import json
import math

import pandas as pd

AZURE_2023 = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:04.0319600,3180,8
2023-11-16 18:17:04.0781490,110,27
2023-11-16 18:18:04.0000001,110,0
"""
AZURE_2024 = """TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,2162,5
2024-05-10 00:00:01+00:00,2399,6
2024-05-10 00:00:01.017335+00:00,76,15
2024-05-11 10:00:00.500000+00:00,2376,18
"""
AZURE_LMM = """TIMESTAMP,NumImages,ContextTokens,GeneratedTokens
2024-10-15 12:00:00.062000,1,1342,83
2024-10-15 12:00:00.154000,0,300,12
2024-10-15 12:00:02.500000,3,4100,1
"""
BURSTGPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,GPT-4,1087,230,1317,Conversation log
118.5,ChatGPT,417,0,417,API log
200,GPT-4,1360,50,1410,API log
"""
BURSTGPT_NEW = """Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type
5,a,1.5,ChatGPT,472,18,490,Conversation log
45,,2.5,GPT-4,1087,230,1317,Conversation log
"""
VIDUR = """arrived_at,num_prefill_tokens,num_decode_tokens
0.0,374,44
4.314579,396,109
4.541856999,879,55
"""
SPLITWISE = """request_id,request_type,application_id,arrival_timestamp,batch_size,prompt_size,token_size
0,0,0,0.0,1,374,44
1,2,1,4.31,1,396,109
2,2,0,4.54,1,879,55
"""
FUNCTIONS_V2 = """app,func,end_timestamp,duration
7b2c,a1,10.5,0.5
7b2c,b2,11.25,3.25
9d0e,a1,12,0.125
"""
MOONCAKE = """{"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1, 2]}
{"timestamp": 3000, "input_length": 7322, "output_length": 490, "hash_ids": [0, 14]}
{"timestamp": 3000, "input_length": 7236, "output_length": 794, "hash_ids": []}
{"timestamp": 6001, "input_length": 2287, "output_length": 316, "hash_ids": [9]}
"""
BAILIAN = (
    '{"chat_id": 1, "parent_chat_id": -1, "timestamp": 0.5, "input_length": 10, "output_length": 5, "type": "text", '
    '"turn": 1, "hash_ids": [3]}\n'
    '{"chat_id": 2, "parent_chat_id": 1, "timestamp": 1.25, "input_length": 70, "output_length": 9, "type": "text", '
    '"turn": 2, "hash_ids": [3, 4]}\n'
)
SAMPLES = {
    "azure_2023": AZURE_2023,
    "azure_2024": AZURE_2024,
    "azure_lmm": AZURE_LMM,
    "burstgpt": BURSTGPT,
    "burstgpt_new": BURSTGPT_NEW,
    "vidur": VIDUR,
    "splitwise": SPLITWISE,
    "functions_v2": FUNCTIONS_V2,
    "mooncake": MOONCAKE,
    "bailian": BAILIAN,
}
FORMATS = {name: name for name in SAMPLES} | {
    "azure_2023": "azure_llm",
    "azure_2024": "azure_llm",
    "azure_lmm": "azure_llm",
    "burstgpt_new": "burstgpt",
    "functions_v2": "azure_functions_v2",
}
COLUMNS = {
    "azure_llm": ("TIMESTAMP", None, "ContextTokens", "GeneratedTokens"),
    "burstgpt": ("Timestamp", "Model", "Request tokens", "Response tokens"),
    "vidur": ("arrived_at", None, "num_prefill_tokens", "num_decode_tokens"),
    "splitwise": ("arrival_timestamp", None, "prompt_size", "token_size"),
    "azure_functions_v2": ("end_timestamp", None, None, None),
    "mooncake": ("timestamp", None, "input_length", "output_length"),
    "bailian": ("timestamp", None, "input_length", "output_length"),
}


def oracle(content, format_name):
    """What a plain reader finds of each request: (arrival in s or, if a date, ns; model; input and output tokens)."""
    if format_name in ("mooncake", "bailian"):
        rows = [json.loads(line) for line in content.splitlines() if line.strip()]
    else:
        rows = list(csv.DictReader(io.StringIO(content, newline=""), skipinitialspace=True))
    found = []
    for row in rows:
        row = {key.strip(): value for key, value in row.items()}
        arrival, model, *tokens = (row.get(name) for name in COLUMNS[format_name])
        if format_name == "azure_llm":
            arrival = pd.to_datetime(arrival.strip(), utc=True).as_unit("ns").value
        elif format_name == "azure_functions_v2":
            arrival, model = float(arrival) - float(row["duration"]), f"{row['app'].strip()}/{row['func'].strip()}"
        else:
            arrival = float(arrival) * (1e-3 if format_name == "mooncake" else 1)
        counts = [math.nan if count is None else float(count) for count in tokens]
        found.append((arrival, model and model.strip(), *counts))
    kept = [row for row in found if format_name != "burstgpt" or row[3] != 0]
    return sorted(kept, key=lambda row: row[0]), len(found) - len(kept)


def as_rows(trace):
    """The same of a trace."""
    nothing = [math.nan] * len(trace)
    arrivals = trace.arrival_s.tolist()
    if trace.start_ns is not None:
        arrivals = [trace.start_ns + round(arrival * 1e9) for arrival in arrivals]
    models = [None] * len(trace) if trace.model is None else trace.model.tolist()
    tokens = [nothing if t is None else t.tolist() for t in (trace.input_tokens, trace.output_tokens)]
    return list(zip(arrivals, models, *tokens, strict=True)), trace.num_failed
