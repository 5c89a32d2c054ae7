"""The texts of the command line that are not errors, in English and Chinese. A test holds both complete."""

from __future__ import annotations

# key: (English, Chinese)
MESSAGES: dict[str, tuple[str, str]] = {
    "stage.data": ("data", "数据"),
    "stage.design": ("design", "设计"),
    "stage.training": ("training", "训练"),
    "stage.evaluation": ("evaluation", "评估"),
    "stage.deployment": ("deployment", "部署"),
    "skipped": ("unchanged, skipped: {reason}", "没有变化，跳过：{reason}"),
    "resumed": ("goes on from the checkpoint of step {step}", "从第 {step} 步的检查点继续"),
    "training": ("training", "训练"),
    "epoch": ("epoch {epoch}", "第 {epoch} 轮"),
    "loss": ("loss", "损失"),
    "accuracy": ("accuracy", "准确率"),
    "f1": ("F1 macro", "宏平均 F1"),
    "tokens_per_second": ("tokens/s", "词元/秒"),
    "report": ("report", "报告"),
    "try": ("try it", "试用"),
    "serving": ("serving {name} at {url}  (Ctrl-C stops)", "正在提供 {name}：{url}（Ctrl-C 停止）"),
    "wrote": ("wrote {path}", "已写入 {path}"),
    "split.train": ("train", "训练集"),
    "split.validation": ("validation", "验证集"),
    "split.test": ("test", "测试集"),
    "lengths": ("tokens a document, {split}", "每篇文档的词元数，{split}"),
    "cut": (
        "max_length {max_length} cuts {documents} documents and loses {share} of the text",
        "max_length {max_length} 会截断 {documents} 篇文档，损失 {share} 的文字",
    ),
    "clean": ("nothing to complain about", "没有发现问题"),
}


def say(key: str, language: str, **values: object) -> str:
    """The text of `key` in `language` (``en`` or ``zh``), with `values` filled in."""
    english, chinese = MESSAGES[key]
    return (chinese if language == "zh" else english).format(**values)
