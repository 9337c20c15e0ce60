"""Owns the flags that launch scripts of Megatron-LM, MindSpeed-LLM and Hugging Face carry and that
are no setting of training here: what is always so, and what cannot be honoured and why. Settings
themselves it does not know.
"""

from __future__ import annotations

# Accepted, because it is true; behind a blank the only value that is.
ALWAYS: dict[str, str] = {
    "--is-instruction-dataset": "training reads the six files of an instruction data set",
    "--use-mcore-models": "models are megatron-core's GPTModel",
    "--use-rotary-position-embeddings": "every supported family has rotary positions",
    "--attention-softmax-in-fp32": "the softmax of attention is computed in fp32",
    "--no-gradient-accumulation-fusion": "weight gradients are accumulated without apex",
    "--no-masked-softmax-fusion": "apex's fused softmax is never used",
    "--no-persist-layer-norm": "apex's persistent layer norm is never used",
    "--no-rope-fusion": "Transformer Engine's fused rotation is never used",
    "--no-bias-gelu-fusion": "megatron-core's fused GELU is never used",
    "--no-bias-swiglu-fusion": "megatron-core's fused SwiGLU is never used",
    "--no-bias-dropout-fusion": "megatron-core's fused dropout is never used",
    "--transformer-impl local": "layers are the local ones, without Transformer Engine",
    "--accumulate-allreduce-grads-in-fp32": "gradients are summed and reduced in fp32",
    "--calculate-per-token-loss": "the loss is a sum over tokens, divided by their number",
    "--check-for-nan-in-loss-and-grad": "every loss and gradient norm is looked at",
    "--no-create-attention-mask-in-dataloader": "no mask is made with the data",
    "--exit-signal-handler": "SIGTERM and SIGUSR1 end a run after its iteration, with a checkpoint",
    "--exit-on-missing-checkpoint": "a missing checkpoint is an error",
    "--auto-detect-ckpt-format": "the form of --load is found out",
    "--use-checkpoint-args": "architecture and tokenizer are those of --load",
    "--log-throughput": "TFLOP/s of a device is part of each line",
    "--use-pytorch-profiler": "--profile is torch.profiler's",
    "--lora-ckpt-filter": "checkpoints of a LoRA run hold the adapters alone",
}

# (why, and the mend) -> flags. Of launchers only the common ones: what no script is known to carry
# stays unknown.
_WHY: dict[str, str] = {
    "there is no loss scaling; use --bf16, or neither for fp32": "--fp16",
    "bf16 and fp32 need no loss scaling; drop it":
        "--initial-loss-scale --loss-scale --min-loss-scale --loss-scale-window --hysteresis",
    "weights and activations are bf16 or fp32; drop it":
        "--fp8-format --fp8-hybrid --fp8-param-gather --fp8-amax-history-len "
        "--fp8-amax-compute-algo --fp8-recipe --fp32-residual-connection",
    "weights always come from --load, none are initialised; drop it":
        "--init-method-std --use-cpu-initialization --no-initialization "
        "--data-parallel-random-init",
    "the family in the checkpoint's config.json chooses the layer spec; drop it":
        "--spec --gemma-fused --use-legacy-models",
    "it is read from the checkpoint's config.json; drop it":
        "--rope-scaling-type --rope-scaling-factor --rope-scaling-mscale "
        "--rope-scaling-mscale-all-dim --rope-scaling-beta-fast --rope-scaling-beta-slow "
        "--rope-scaling-original-max-position-embeddings --original-max-position-embeddings "
        "--low-freq-factor --high-freq-factor --use-rope-scaling --rotary-percent "
        "--rotary-seq-len-interpolation-factor --dynamic-factor --longrope-freqs-type "
        "--short-factor --long-factor --short-mscale --long-mscale --use-glm-rope "
        "--no-position-embedding --gelu-tanh --squared-relu --sliding-window --window-size "
        "--scale-emb --scale-depth --dim-model-base --embedding-multiplier-scale "
        "--output-multiplier-scale --add-dense-bias --add-output-layer-bias --skip-bias-add "
        "--no-post-layer-norm --apply-layernorm-1p --softmax-scale --attention-output-gate "
        "--no-query-key-layer-scaling --apply-query-key-layer-scaling --moe-layer-freq "
        "--first-k-dense-replace --n-shared-experts --moe-shared-expert-intermediate-size "
        "--shared-expert-gate --routed-scaling-factor --moe-router-score-function",
    "no family with it is supported; leave it out":
        "--multi-head-latent-attention --kv-lora-rank --q-lora-rank --v-head-dim "
        "--qk-rope-head-dim --qk-nope-head-dim --mla-fa-without-pad --mla-mm-split --n-group "
        "--topk-group --moe-router-num-groups --moe-router-group-topk "
        "--moe-router-enable-expert-bias --moe-router-bias-update-rate --mtp-num-layers "
        "--mtp-loss-scaling-factor --mtp-mem-efficient-logits --recompute-mtp-norm "
        "--recompute-mtp-layer --share-kvstates --cla-share-factor",
    "kernels are chosen by the device, and a switch here would change nothing: drop it":
        "--use-fused-rmsnorm --use-fused-swiglu --use-fused-rotary-pos-emb --use-flash-attn "
        "--use-fusion-attn-v2 --attention-backend --use-fused-moe-token-permute-and-unpermute "
        "--fused-score-scale --cross-entropy-loss-fusion --cross-entropy-fusion-impl "
        "--gemm-gradient-accumulation-fusion --jit-compile",
    "masks follow from the model and the rows; drop it":
        "--attention-mask-type --attention-mask-on-cpu --sparse-mode --pre-tockens --next-tockens "
        "--shape-order --cp-attention-mask-type --eod-mask-loss",
    "runs repeat bit for bit on a CPU, and no switch makes other devices do so; drop it":
        "--deterministic-mode --use-deter-comp --npu-deterministic",
    "say --recompute-granularity selective": "--recompute-activations",
    "memory is saved by --recompute-granularity selective, or full with --recompute-method and "
    "--recompute-num-layers; say one of these or drop it":
        "--recompute-modules --recompute-activation-function "
        "--recompute-activation-function-num-layers --recompute-norm --recompute-norm-num-layers "
        "--recompute-in-advance --recompute-in-bubble --enable-recompute-layers-per-pp-rank "
        "--adaptive-recompute-enable --adaptive-recompute-device-swap "
        "--adaptive-recompute-device-size --swap-attention --swap-modules "
        "--distribute-saved-activations --cpu-offloading --cpu-offloading-num-layers "
        "--moe-zero-memory --moe-zero-memory-num-layers --output-layer-slice-num",
    "AdamW keeps fp32 main weights and states on the device; --use-distributed-optimizer shards "
    "them; drop it":
        "--reuse-fp32-param --swap-optimizer --swap-optimizer-times --optimizer-cpu-offload "
        "--use-precision-aware-optimizer --quant-states --main-grads-dtype --main-params-dtype "
        "--exp-avg-dtype --exp-avg-sq-dtype --grad-reduce-in-bf16 --o2-optimizer --o2-gradient "
        "--use-torch-fsdp2 --use-custom-fsdp --use-megatron-fsdp --data-parallel-sharding-strategy",
    "weight decay does not change on the way; say --weight-decay":
        "--start-weight-decay --end-weight-decay --weight-decay-incr-style",
    "there is one optimizer, AdamW, and one --lr for all weights; drop it":
        "--sgd-momentum --decoupled-lr --decoupled-min-lr",
    "the batch has one size, --global-batch-size; drop it": "--rampup-batch-size",
    "communication is not overlapped; drop it":
        "--overlap-grad-reduce --overlap-param-gather --overlap-param-gather-with-optimizer-step "
        "--align-grad-reduce --no-align-grad-reduce --no-align-param-gather --delay-grad-reduce "
        "--delay-param-gather --ddp-bucket-size --ddp-num-buckets --tp-comm-overlap --use-mc2 "
        "--use-ascend-mc2 --use-ascend-coc --coc-fused-kernel --coc-parallel-num "
        "--no-async-tensor-model-parallel-allreduce --async-log-allreduce "
        "--moe-permutation-async-comm --moe-alltoall-overlap-comm --moe-allgather-overlap-comm "
        "--moe-fb-overlap --moe-hierarchical-alltoallv",
    "messages between pipeline stages are sent one by one; drop it":
        "--overlap-p2p-communication --no-overlap-p2p-communication "
        "--overlap-p2p-communication-warmup-flush --no-overlap-p2p-communication-warmup-flush",
    "keys and values are gathered over the context-parallel ranks; drop it":
        "--use-cp-send-recv-overlap --use-fused-ring-attention-update --cp-window-size "
        "--ulysses-degree-in-cp --kv-head-repeat-before-uly-alltoall "
        "--hierarchical-context-parallel-sizes --adaptive-cp-only-reschedule "
        "--adaptive-cp-manually-set-mask-list --adaptive-cp-dynamic-attn-mask",
    "--num-layer-list says how many layers each stage has; drop it":
        "--noop-layers --schedules-method --pipeline-model-parallel-layout "
        "--account-for-embedding-in-pipeline-split --account-for-loss-in-pipeline-split",
    "cut the model with --tensor-model-parallel-size; drop it": "--tp-2d --tp-x --tp-y",
    "experts are computed one after the other; drop it": "--moe-grouped-gemm",
    "Transformer Engine is not used; drop it": "--moe-permute-fusion",
    "there is no such loss; --moe-aux-loss-coeff X balances experts":
        "--moe-z-loss-coeff --moe-device-level-aux-loss-coeff --moe-comm-aux-loss-coeff --seq-aux "
        "--moe-input-jitter-eps",
    "no token is ever dropped, and the router decides alone; leave it out":
        "--moe-expert-capacity-factor --moe-pad-expert-input-to-capacity --moe-token-drop-policy "
        "--fix-router",
    "say --expert-tensor-parallel-size 1": "--moe-tp-extend-ep",
    "routers compute in fp32; drop it": "--router-gating-in-fp32 --moe-router-dtype",
    "the fast tokenizer is always used; data and chat use it too; drop it":
        "--tokenizer-not-use-fast",
    "give the Hugging Face directory: --tokenizer-name-or-path":
        "--tokenizer-model --vocab-file --merge-file --tiktoken-pattern",
    "rows are padded behind their tokens; drop it": "--tokenizer-padding-side",
    "the flag is --variable-seq-lengths": "--no-pad-to-seq-lengths",
    "give --data-path, and --split for the shares of training, validation and test rows":
        "--train-data-path --valid-data-path --test-data-path --per-split-data-args-path "
        "--data-args-path --mock-data",
    "rows are read from memory-mapped files in the training process; drop it":
        "--num-workers --no-mmap-bin-files",
    "the order of rows is said by --no-shuffle, --padded-samples and "
    "--full-shuffle-instruction-dataset": "--dataloader-type --no-data-sharding",
    "preprocess_data.py takes it, where the data are prepared; training reads what it wrote":
        "--history-turns --cut-max-seqlen --prompt-type-path --placeholder-token "
        "--enable-thinking",
    "training is supervised fine-tuning; drop it":
        "--is-pairwise-dataset --dpo-loss-type --dpo-beta --simpo-loss-type --simpo-beta "
        "--gamma-beta-ratio --ref-model --reward-model --reward-tokens --refer-model-iter "
        "--pref-ftx",
    "schedules count iterations; use --lr-decay-iters": "--lr-decay-samples",
    "schedules count iterations; use --lr-warmup-iters or --lr-warmup-fraction":
        "--lr-warmup-samples",
    "give --train-iters or --epochs": "--train-samples",
    "the checkpoint's schedule must be that of the flags; --override-opt-param-scheduler goes on "
    "with the flags'":
        "--use-checkpoint-opt-param-scheduler",
    "checkpoints hold all that is needed to go on; a later run leaves it out (--no-load-optim, "
    "--no-load-rng, --finetune), and so does convert_ckpt.py; drop it":
        "--no-save-optim --no-save-rng",
    "training writes one form, which loads at any layout; convert_ckpt.py --ckpt-format writes "
    "others; drop it":
        "--ckpt-format --dist-ckpt-format --use-dist-ckpt --ckpt-fully-parallel-save "
        "--ckpt-fully-parallel-load --ckpt-assume-constant-structure --async-save "
        "--use-persistent-ckpt-worker --dist-ckpt-strictness --non-persistent-save-interval "
        "--non-persistent-ckpt-type --load-checkpoint-loosely",
    "give the directory of the iteration: --load SAVE/iter_0000100": "--ckpt-step",
    "give it as --load, with --finetune": "--pretrained-checkpoint",
    "all nodes write into one --save; drop it": "--no-shared-storage",
    "every loss and gradient norm is looked at; --on-non-finite says what follows":
        "--no-check-for-nan-in-loss-and-grad --rerun-mode --error-injection-rate",
    "train.jsonl, --tensorboard-dir and loss.png hold what is recorded, each --log-interval; "
    "drop it":
        "--log-params-norm --log-num-zeros-in-grad --log-progress --log-timers-to-tensorboard "
        "--log-validation-ppl-to-tensorboard --log-memory-to-tensorboard "
        "--log-world-size-to-tensorboard --no-log-loss-scale-to-tensorboard "
        "--no-log-learnig-rate-to-tensorboard --tensorboard-log-interval --tensorboard-queue-size "
        "--timing-log-level --timing-log-option --barrier-with-L1-time "
        "--no-barrier-with-level-1-timing --wandb-project --wandb-exp-name --wandb-save-dir "
        "--wandb-entity --one-logger-project --one-logger-run-name --enable-one-logger",
    "--profile writes torch.profiler's trace into profile/ of the log directory; drop it":
        "--profile-level --profile-with-cpu --profile-with-stack --profile-with-memory "
        "--profile-record-shapes --profile-save-path --profile-export-type "
        "--record-memory-history --memory-snapshot-path",
    "it has no counterpart here; drop it":
        "--manual-gc --manual-gc-interval --empty-unused-memory-level --adlr-autoresume "
        "--enable-high-availability --enable-share-memory --disable-gloo-group "
        "--distributed-timeout-seconds-after-init --local-rank",
    "an adapter exchanges its rank's numbers only, nothing is left to fuse; drop it":
        "--lora-fusion",
    "adapters are trained alone; --train-only trains whole layers": "--lora-modules-to-save",
    "gradients reach the adapters by themselves; drop it": "--lora-register-forward-hook",
    "adapters stand on weights in --bf16 or fp32; drop it": "--qlora --qlora-save-dequantize",
    "it is torchrun's (or mindspeed-llm launch's): put it before the script":
        "--nproc-per-node --nnodes --node-rank --master-addr --master-port",
    # Hugging Face's and LLaMA-Factory's words
    "the flag is --lr": "--learning-rate",
    "the flag is --lr-decay-style": "--lr-scheduler-type",
    "the flag is --lr-warmup-fraction": "--warmup-ratio",
    "the flag is --lr-warmup-iters": "--warmup-steps",
    "the flag is --train-iters": "--max-steps",
    "the flag is --epochs": "--num-train-epochs --num-epochs",
    "the flag is --save": "--output-dir",
    "the flag is --save-interval": "--save-steps",
    "the flag is --keep-last": "--save-total-limit",
    "the flag is --log-interval": "--logging-steps",
    "the flag is --eval-interval": "--eval-steps",
    "the flag is --clip-grad": "--max-grad-norm",
    "the flag is --seq-length": "--max-seq-length --max-length --cutoff-len",
    "the flag is --load": "--model-name-or-path --resume-from-checkpoint",
    "the flag is --data-path": "--dataset --dataset-name",
    "the flag is --micro-batch-size": "--per-device-train-batch-size",
    "say --global-batch-size, the rows of an optimizer step: micro-batch size x data-parallel "
    "ranks x accumulation":
        "--gradient-accumulation-steps",
    "say --recompute-granularity full": "--gradient-checkpointing",
    "the flag is --pack": "--packing",
    "say --use-distributed-optimizer, which shards the optimizer's state": "--deepspeed --fsdp",
    "the flag is --lora-r": "--lora-rank",
    "the flag is --lora-target-modules": "--lora-target",
}  # fmt: skip

REFUSED: dict[str, str] = {flag: why for why, flags in _WHY.items() for flag in flags.split()}
