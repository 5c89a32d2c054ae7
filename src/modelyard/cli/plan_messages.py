"""The texts of `modelyard plan`, in English and Chinese. A test holds both complete and every text used."""

from __future__ import annotations

# key: (English, Chinese)
MESSAGES: dict[str, tuple[str, str]] = {
    "fits": (
        "Fits: {needed} of {usable} on {device} ({share})",
        "放得下：{device} 可用 {usable}，需要 {needed}（{share}）",
    ),
    "fits_not": (
        "Does not fit: {needed} needed, {usable} usable on {device}; {missing} too much",
        "放不下：需要 {needed}，{device} 可用 {usable}，超出 {missing}",
    ),
    "retries": (
        "It fits only because cached memory is given back in between, which takes time.",
        "中途需要归还缓存的显存才放得下，会变慢。",
    ),
    "unknown": ("The memory is not known", "无法预知内存"),
    "untraceable": (
        "The model's code needs computed values at {operation}, so it cannot be traced. The rest is known without it.",
        "模型代码在 {operation} 处需要真实的计算结果，无法追踪。其余信息不受影响。",
    ),
    "group.model": ("model", "模型"),
    "group.work": ("work", "计算量"),
    "group.device": ("device", "设备"),
    "group.plan": ("plan", "方案"),
    "group.time": ("time", "时间"),
    "group.energy": ("energy", "能耗"),
    "group.cost": ("cost", "费用"),
    "parameters": ("{total} parameters, {trainable} trainable", "{total} 个参数，其中 {trainable} 个可训练"),
    "flops": ("{token} FLOPs a token, {step} a step", "每个词元 {token} FLOPs，每步 {step}"),
    "device.usable": ("{name}, {usable} usable of {total}", "{name}，共 {total}，可用 {usable}"),
    "device.memory": ("any GPU with {total}", "任意 {total} 显存的 GPU"),
    "device.a_gpu": ("such a GPU", "这样的 GPU"),
    "plan.batch": (
        "{precision}, at most {examples} × {tokens} tokens at once",
        "{precision}，一次最多计算 {examples} × {tokens} 个词元",
    ),
    "plan.one": ("1 micro-batch a step", "每步 1 个微批次"),
    "plan.many": ("up to {count} micro-batches a step", "每步最多 {count} 个微批次"),
    "plan.checkpointing": ("activation checkpointing", "激活检查点"),
    "time.step": ("step {step}", "每步 {step}"),
    "time.epoch": ("epoch {epoch}", "每轮 {epoch}"),
    "time.run": ("run {run}, {steps} steps", "全部 {run}，共 {steps} 步"),
    "time.catalogue": (
        "From the data sheet alone: off by up to 40%. Evaluations and the start are not in it.",
        "仅根据规格表估算，误差可达 40%。不含评估和启动的时间。",
    ),
    "time.calibration": (
        "From a calibration of this device: off by up to 20%. Evaluations and the start are not in it.",
        "根据本设备的校准估算，误差可达 20%。不含评估和启动的时间。",
    ),
    "time.unknown": (
        "not known: no rate of this device at {precision} is known",
        "未知：没有该设备在 {precision} 下的速度数据",
    ),
    "energy": ("{energy} kWh for the device alone", "仅设备本身 {energy} 千瓦时"),
    "energy.little": ("less than 0.01 kWh", "不到 0.01 千瓦时"),
    "cost": ("{dollars} at {provider}, {rate} an hour on {date}", "{provider}：{dollars}（{date} 每小时 {rate}）"),
    "range": ("{expected} ({low} to {high})", "{expected}（{low} 至 {high}）"),
    "second": ("{number} s", "{number} 秒"),
    "minute": ("{number} min", "{number} 分钟"),
    "hour": ("{number} h", "{number} 小时"),
    "day": ("{number} days", "{number} 天"),
    "memory": ("memory", "内存"),
    "training": ("training", "训练"),
    "evaluation": ("evaluation", "评估"),
    "cause.weights": ("weights", "权重"),
    "cause.gradients": ("gradients", "梯度"),
    "cause.optimizer": ("optimizer", "优化器"),
    "cause.activations": ("activations", "激活"),
    "cause.temporaries": ("temporaries", "临时张量"),
    "cause.inputs": ("inputs", "输入"),
    "cause.allocator": ("allocator", "分配器"),
    "cause.workspace": ("cuBLAS", "cuBLAS 缓冲"),
    "cause.context": ("CUDA", "CUDA 环境"),
    "cause.process": ("process", "进程"),
    "total": ("total", "合计"),
    "note.modelled": (
        "Nothing was measured on a GPU. The tensors are traced as on a processor; the allocator, cuBLAS and the CUDA "
        "context are modelled.",
        "没有在 GPU 上实测。张量按处理器上的执行追踪，分配器、cuBLAS 和 CUDA 环境的占用由模型估算。",
    ),
    "note.usable": ("What is usable of this device is an estimate.", "该设备的可用显存是估计值。"),
    "note.total": (
        "Other programs on this GPU, and the screen, take from the usable memory.",
        "这块 GPU 上的其他程序和显示输出会占用可用显存。",
    ),
    "note.processor": (
        "Tensors are traced; the process is what Python and its libraries hold now.",
        "张量由追踪得出；“进程”是 Python 及其库目前占用的内存。",
    ),
    "note.scaled": (
        "Traced: one micro-batch with this many examples: {examples}. The rest is scaled from that.",
        "只追踪了一个微批次（样本数 {examples}），其余按比例推算。",
    ),
    "other.fits": ("Other ways", "其他方案"),
    "other.fits_not": ("What would fit", "可行的方案"),
    "other.none": (
        "None of these is enough alone. Several together may be, or a smaller model.",
        "以下办法单独都不够，可以合用，或换更小的模型。",
    ),
    "other.micro_batch": (
        "{examples} examples at once, {micro_batches} micro-batches a step",
        "一次计算 {examples} 个样本，每步 {micro_batches} 个微批次",
    ),
    "other.checkpointing": (
        "activation checkpointing, {examples} examples at once",
        "激活检查点，一次计算 {examples} 个样本",
    ),
    "other.precision": (
        "bfloat16 in matrix products, {examples} examples at once",
        "矩阵乘法用 bfloat16，一次计算 {examples} 个样本",
    ),
    "other.shorter": ("documents of at most {tokens} tokens", "文档最长 {tokens} 个词元"),
    "other.layers": ("{layers} of {before} layers", "{before} 层减为 {layers} 层"),
    "other.device": ("{description}, {size}", "{description}，{size}"),
    "effect.nothing": ("What is learned stays the same.", "学到的内容不变。"),
    "effect.rounding": (
        "Products are rounded to 8 bits; the result differs slightly.",
        "矩阵乘法只保留 8 位有效位，结果略有不同。",
    ),
    "effect.text": ("{share} of the training text is not read.", "训练文本有 {share} 读不到。"),
    "effect.model": ("Another, weaker model is learned.", "得到的是另一个更弱的模型。"),
    "needs": ("needs {needed}", "需要 {needed}"),
    "needs.most": ("needs at most {needed}", "最多需要 {needed}"),
    "fit": ("fits", "放得下"),
    "fit_not": ("does not fit, {missing} too much", "放不下，超出 {missing}"),
    "run": ("run {run}", "全部 {run}"),
    "comma": (", ", "，"),
}  # fmt: skip


def say(key: str, language: str, **values: object) -> str:
    """The text of `key` in `language` (``en`` or ``zh``), with `values` filled in."""
    english, chinese = MESSAGES[key]
    return (chinese if language == "zh" else english).format(**values)
